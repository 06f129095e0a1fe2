"""A rank's random state, as shards of a checkpoint."""

from collections.abc import Iterator

import torch

from gear_dist.checkpoints.reader import CheckpointReader
from gear_dist.checkpoints.shards import TensorShard
from gear_dist.distributed import collectives


def rng_shards(device: torch.device) -> Iterator[TensorShard]:
    """This rank's states: copies, which writing does not restore."""
    yield TensorShard(f"random.{collectives.rank()}.cpu", 0, torch.get_rng_state())
    if device.type == "cuda":
        yield TensorShard(f"random.{collectives.rank()}.cuda", 0, torch.cuda.get_rng_state(device))


def restore_rng_state(reader: CheckpointReader, device: torch.device) -> None:
    """Restore this rank's saved RNG states.

    Raises:
        DataError: the checkpoint was written on another kind of device.
    """
    shards = list(rng_shards(device))
    reader.fill(shards, likely=collectives.rank() / collectives.world_size())
    torch.set_rng_state(shards[0].values)
    if device.type == "cuda":
        torch.cuda.set_rng_state(shards[1].values, device)


def reseed(seed: int, step: int) -> None:
    """Reseed when resuming with another world size: a function of seed, step and rank."""
    torch.manual_seed(seed * 1_000_003 + step * 4099 + collectives.rank() + 1)
