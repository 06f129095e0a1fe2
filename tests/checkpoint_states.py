"""Checkpoints of plain tensors, for tests of the store."""

from typing import Any

import torch
from torch import Tensor

from gear_dist.checkpoints.manager import CheckpointStore
from gear_dist.checkpoints.owner import Owner, Ownership
from gear_dist.checkpoints.reader import CheckpointReader
from gear_dist.checkpoints.retention import Retention
from gear_dist.checkpoints.shards import Piece, whole
from gear_dist.config.run import CheckpointConfig
from gear_dist.storage.base import Storage

RUN = "0a1b2c3d"


def make_store(
    storage: Storage, asynchronous: bool = False, held: Ownership | None = None, **config: Any
) -> CheckpointStore:
    """A store of the run RUN, or of the one that holds the address; it takes the address."""
    held = held or Ownership.take(storage, Owner.here(RUN))
    retention = Retention(CheckpointConfig(**config))
    return CheckpointStore(storage, retention, held, asynchronous=asynchronous)


def pieces() -> list[Piece]:
    """Of a tensor in two stretches, and of three buffers."""
    numbers = torch.arange(10.0)
    return [
        Piece("net.weights.a", 4, numbers[4:].clone()),
        Piece("net.weights.a", 0, numbers[:4].clone()),
        whole("net.buffers.n", torch.tensor(7)),
        whole("net.buffers.bytes", torch.arange(3, dtype=torch.uint8)),
        whole("net.buffers.empty", torch.zeros(0)),
    ]


def read(reader: CheckpointReader, start: int, count: int) -> Tensor:
    """A stretch of the first."""
    values = torch.full((count,), -1.0)
    reader.fill([Piece("net.weights.a", start, values)])
    return values


def save(store: CheckpointStore, step: int, facts: dict[str, Any] | None = None) -> str:
    """Publish a checkpoint; its folder."""
    store.save(step, facts or {}, pieces())
    store.wait()
    [result] = store.take_results()
    assert result.problem == "", result
    return result.folder
