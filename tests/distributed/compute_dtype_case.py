"""Trainings under what DeepSpeed does on CUDA alone, imitated on the CPU."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import training_case as case
from torch import nn

from gear_dist.config.schema import RunConfig
from gear_dist.runs.run_folder import RunFolder
from gear_dist.training.engine import TrainingEngine, prepare_deepspeed


@contextlib.contextmanager
def autocast_asked_as_on_cuda() -> Iterator[None]:
    """`torch.is_autocast_enabled()` without a device means CUDA's: here it means the CPU's, so that
    DeepSpeed's guard around its forward acts as on a GPU."""
    asked = torch.is_autocast_enabled
    torch.is_autocast_enabled = lambda device="cpu": asked(device)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.is_autocast_enabled = asked


def recorded_dtypes(
    rank: int, world_size: int, configs: list[RunConfig]
) -> list[dict[str, dict[str, str]]]:
    """Worker: what each training has recorded of the dtypes that it computed in."""
    found = []
    with autocast_asked_as_on_cuda():
        for config in configs:
            assert case.train(config, rank, world_size).state == "done"
            found.append(RunFolder(config.run.folder).read_environment()["compute_dtypes"])
    return found


def dtype_under_outer_autocast(rank: int, world_size: int, config: RunConfig) -> str:
    """Worker: what a layer computes in where autocast is around DeepSpeed's engine."""
    device = torch.device("cpu")
    prepare_deepspeed(device)
    engine: Any = TrainingEngine(
        "layer", nn.Linear(4, 4), config.engine, config.optimizer, world_size=1, device=device
    )
    with autocast_asked_as_on_cuda(), torch.autocast("cpu", torch.bfloat16):
        engine(torch.zeros(2, 4))
    found = engine.compute_dtypes.take()["linear"]
    engine.close()
    return found
