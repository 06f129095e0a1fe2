"""Shards of named tensors: how a state that is spread over ranks is named for its checkpoint.

A rank holds fragments of tensors that DeepSpeed has flattened and cut at places that depend on the
ZeRO stage and the number of ranks. A checkpoint knows whole tensors by name, and the fragments of
each that a part holds, so that any other partition can be filled from it.
"""

from typing import NamedTuple

from torch import Tensor


class TensorShard(NamedTuple):
    """Elements [start, start + n) of a named tensor, flattened."""

    key: str
    start: int
    values: Tensor
    """1-D, n elements; where it is a view of a live state, writing restores that."""
    replicated: bool = False
    """Whether every rank holds the same: one of them writes it."""
    copied_from: Tensor | None = None
    """The live tensor where `values` cannot be its view: its elements lie in another order."""


def replicated(key: str, tensor: Tensor) -> TensorShard:
    """A tensor that every rank has whole."""
    source = None if tensor.is_contiguous() else tensor
    return TensorShard(key, 0, tensor.reshape(-1), replicated=True, copied_from=source)
