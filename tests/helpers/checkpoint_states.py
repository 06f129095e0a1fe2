"""Checkpoints of plain tensors, for tests of the store."""

from typing import Any

import torch
from torch import Tensor

from gear_dist.checkpoints.manager import CheckpointManager
from gear_dist.checkpoints.owner import Owner, Ownership
from gear_dist.checkpoints.reader import CheckpointReader
from gear_dist.checkpoints.retention import Retention
from gear_dist.checkpoints.shards import TensorShard, replicated
from gear_dist.config.run import CheckpointConfig
from gear_dist.storage.base import Storage

RUN = "0a1b2c3d"


def make_store(
    storage: Storage, asynchronous: bool = False, held: Ownership | None = None, **config: Any
) -> CheckpointManager:
    """A store of the run RUN, or of the one that holds the address; it takes the address."""
    held = held or Ownership.acquire(storage, Owner.here(RUN))
    retention = Retention(CheckpointConfig(**config))
    return CheckpointManager(storage, retention, held, asynchronous=asynchronous)


def shards() -> list[TensorShard]:
    """Of a tensor in two stretches, and of three buffers."""
    numbers = torch.arange(10.0)
    return [
        TensorShard("net.weights.a", 4, numbers[4:].clone()),
        TensorShard("net.weights.a", 0, numbers[:4].clone()),
        replicated("net.buffers.n", torch.tensor(7)),
        replicated("net.buffers.bytes", torch.arange(3, dtype=torch.uint8)),
        replicated("net.buffers.empty", torch.zeros(0)),
    ]


def read(reader: CheckpointReader, start: int, count: int) -> Tensor:
    """A stretch of the first."""
    values = torch.full((count,), -1.0)
    reader.fill([TensorShard("net.weights.a", start, values)])
    return values


def save(store: CheckpointManager, step: int, state: dict[str, Any] | None = None) -> str:
    """Publish a checkpoint; its folder."""
    store.save(step, state or {}, shards())
    store.wait()
    [result] = store.take_results()
    assert result.problem == "", result
    return result.folder
