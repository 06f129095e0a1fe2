"""A rank's random state, as pieces of a checkpoint."""

from collections.abc import Iterator

import torch

from gear_dist.checkpoints.reader import CheckpointReader
from gear_dist.checkpoints.shards import Piece
from gear_dist.distributed import collectives


def random_pieces(device: torch.device) -> Iterator[Piece]:
    """This rank's states: copies, which writing does not restore."""
    yield Piece(f"random.{collectives.rank()}.cpu", 0, torch.get_rng_state())
    if device.type == "cuda":
        yield Piece(f"random.{collectives.rank()}.cuda", 0, torch.cuda.get_rng_state(device))


def take_up_random_pieces(reader: CheckpointReader, device: torch.device) -> None:
    """Go on with this rank's saved states.

    Raises:
        DataError: the checkpoint was written on another kind of device.
    """
    pieces = list(random_pieces(device))
    reader.fill(pieces, likely=collectives.rank() / collectives.world_size())
    torch.set_rng_state(pieces[0].values)
    if device.type == "cuda":
        torch.cuda.set_rng_state(pieces[1].values, device)


def reseed(seed: int, step: int) -> None:
    """Begin anew where another number of ranks goes on: a function of seed, step and rank."""
    torch.manual_seed(seed * 1_000_003 + step * 4099 + collectives.rank() + 1)
