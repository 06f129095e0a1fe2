"""What operations cost: arithmetic, memory traffic, time at given rates, and live memory.

Works on real tensors and on fake ones, which have shapes and no memory.
"""

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from gear_dist.planning.hardware import Rates

_KERNELS = "gear_kernels"
_ATEN = torch.ops.aten
_CONVOLUTIONS = (_ATEN.convolution, _ATEN.convolution_backward)
# torch counts attention by the names that it has on CUDA only; causal attention counts whole.
_CPU_ATTENTION: dict[Any, Callable[..., int]] = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        _ATEN._scaled_dot_product_flash_attention
    ],
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _ATEN._scaled_dot_product_flash_attention_backward
    ],
}


class OperationCost(NamedTuple):
    """Sums over operations; the difference of two readings is what lies between them."""

    flops: int = 0
    """Of products and convolutions; a multiply-add is two."""
    traffic_bytes: int = 0
    """Inputs and outputs of every operation that is no view."""
    seconds: float = 0.0
    """Each operation takes the longer of its arithmetic and its traffic."""

    def plus(self, other: "OperationCost") -> "OperationCost":
        """The sum, member by member."""
        return OperationCost(
            self.flops + other.flops,
            self.traffic_bytes + other.traffic_bytes,
            self.seconds + other.seconds,
        )

    def minus(self, other: "OperationCost") -> "OperationCost":
        """The difference, member by member."""
        return self.plus(OperationCost(-other.flops, -other.traffic_bytes, -other.seconds))


class LiveStorages:
    """Bytes of storages from when they are held until they die, each counted once.

    Attributes:
        now: bytes alive.
        peak: the most that were at any time since `restart_peak`.
    """

    def __init__(self, ignored: Iterable[Tensor] = ()) -> None:
        self.now = 0
        self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()
        for tensor in ignored:
            self._seen.add(tensor.untyped_storage())

    def hold(self, tensor: Tensor) -> None:
        """Count the tensor's storage, unless it is counted or ignored."""
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, size)

    def restart_peak(self) -> None:
        """Forget what was at its most before."""
        self.peak = self.now

    def _release(self, size: int) -> None:
        self.now -= size


class OperationTally(TorchDispatchMode):
    """Costs of all operations inside, and the memory that their results hold.

    Operations of the codebook kernels count as arithmetic alone: the kernels keep their tiles on
    the chip, and what stands in for them here does not.

    Attributes:
        cost: so far.
        memory: storages that operations inside made.
    """

    def __init__(self, rates: Rates, ignored: Iterable[Tensor] = ()):
        """Ignored: tensors that were there before, such as parameters."""
        super().__init__()
        self.rates = rates
        self.cost = OperationCost()
        self.memory = LiveStorages(ignored)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        outputs = _tensors(result)
        for tensor in outputs:
            self.memory.hold(tensor)
        if func.namespace == "aten" and not func.is_view:
            inputs = _tensors((args, kwargs))
            flops, seconds = self._arithmetic(func, args, kwargs, result, inputs)
            traffic = 0 if _inside_kernels() else sum(map(_touched_bytes, inputs + outputs))
            seconds = max(seconds, traffic / self.rates.memory)
            self.cost = self.cost.plus(OperationCost(flops, traffic, seconds))
        return result

    def _arithmetic(
        self, func: Any, args: Any, kwargs: Any, result: Any, inputs: list[Tensor]
    ) -> tuple[int, float]:
        operation = func._overloadpacket
        count = _CPU_ATTENTION.get(operation) or flop_registry.get(operation)
        if count is None:
            return 0, 0.0
        flops = count(*args, **kwargs, out_val=result)
        rate = self.rates.flops_per_s(inputs[0].dtype, convolution=operation in _CONVOLUTIONS)
        return flops, flops / rate


@contextmanager
def saved_for_backward(ignored: Iterable[Tensor] = ()) -> Iterator[LiveStorages]:
    """What forwards inside keep for their backwards, but for ignored tensors: the weights."""
    found = LiveStorages(ignored)

    def pack(tensor: Tensor) -> Tensor:
        found.hold(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _touched_bytes(tensor: Tensor) -> int:
    """What an operation reads or writes of it; an expanded dimension is one row in memory."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _inside_kernels() -> bool:
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(_KERNELS):
            return True
        frame = frame.f_back
    return False
