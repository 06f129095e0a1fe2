"""Bytes of every collective of this process, as torch hands them to the process group."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NAMES = {
    "allreduce_": "all_reduce",
    "allgather_": "all_gather",
    "_allgather_base_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "reduce_scatter_": "reduce_scatter",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_": "reduce",
    "broadcast_": "broadcast",
    "barrier": "barrier",
}
"""Operations of torch.ops.c10d by the collective's name."""


class CollectiveTally(TorchDispatchMode):
    """Calls and payload bytes by collective.

    A payload is the whole tensor that all ranks share: what an all-reduce reduces, what an
    all-gather returns, what a reduce-scatter takes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            name = func._schema.name.split("::")[1]
            sizes = [_bytes(part) for part in args[:2]]
            collective = NAMES.get(name, name)
            self.calls[collective] += 1
            self.bytes[collective] += max(sizes)
        return func(*args, **(kwargs or {}))


def _bytes(part: object) -> int:
    return sum(x.nbytes for x in tree_leaves(part) if isinstance(x, torch.Tensor))
