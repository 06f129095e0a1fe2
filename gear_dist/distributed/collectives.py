"""Collectives that the worker needs; each is a no-op in a single process."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

Result = TypeVar("Result")


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()


def any_rank(flags: Tensor) -> list[bool]:
    """Whether each flag is set on any rank. One small all-reduce; synchronises the device.

    Args:
        flags: (n,) float, 0 or 1; overwritten.
    """
    if world_size() > 1:
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return [value > 0 for value in flags.tolist()]


def mean_over_ranks(values: Tensor) -> Tensor:
    """Mean of a tensor over ranks, in place. One all-reduce."""
    if world_size() > 1:
        dist.all_reduce(values)
        values /= world_size()
    return values


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum of a tensor over ranks, in place. One all-reduce."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def gather_objects(value: Any, group: Any = None) -> list[Any]:
    """Every rank's value, by rank, on every rank. Pickles: for small records only.

    Args:
        group: process group of all ranks; None: the default one.
    """
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group)
    return values


def broadcast_object(value: Any) -> Any:
    """Rank 0's value on every rank."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def on_rank_0(action: Callable[[], Any]) -> None:
    """Run something on rank 0 alone; where it raises, the same error is raised on every rank."""
    from_rank_0(lambda: (action(), None)[1])


def from_rank_0(action: Callable[[], Result]) -> Result:
    """What something gives on rank 0 alone, on every rank; where it raises, so do all."""
    value, error = None, None
    if rank() == 0:
        try:
            value = action()
        except Exception as raised:
            error = raised
    value, error = broadcast_object((value, error))
    if error is not None:
        raise error
    return value


def destroy_process_group() -> None:
    """End torch.distributed, so that another run may follow in this process.

    DeepSpeed (0.19.8) keeps groups and its backend at module level; the next run's engines would
    take those of the last one.
    """
    comm: Any = sys.modules.get("deepspeed.comm.comm")
    if comm is None or comm.cdb is None:
        dist.destroy_process_group()
        return
    comm.destroy_process_group()
    comm.cdb = None
