"""Gradients that nobody needs: None to autograd, and without elements in a graph.

Operators of torch.library return tensors, never None. `needs` has a truth value for each of the
operator's first inputs, and is its last argument.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def needed(gradients: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """What autograd takes: None for all that are not needed."""
    return tuple(grad if need else None for grad, need in zip(gradients, needs, strict=True))


def without_none(
    inputs: Sequence[Tensor], gradients: Sequence[Tensor | None], needs: Sequence[bool]
) -> tuple[Any, ...]:
    """What an operator returns: a tensor without elements for each that is not needed."""
    return tuple(
        like.new_empty(0) if grad is None else grad
        for like, grad in zip(inputs, needed(gradients, needs), strict=True)
    )


def gradient_shapes(*arguments: Any) -> tuple[Tensor, ...]:
    """Fake of an operator of gradients, which are laid out contiguously."""
    needs = arguments[-1]
    return tuple(
        tensor.new_empty(tensor.shape if need else 0)
        for tensor, need in zip(arguments[: len(needs)], needs, strict=True)
    )
