"""Engines that are built and closed again, and the memory of tensors that is still held."""

import gc
from typing import Any

import torch
from torch import nn

from gear_dist.config.training import EngineConfig, OptimizerConfig
from gear_dist.training.engine import TrainingEngine, prepare_deepspeed

WIDTH = 512


def held_bytes() -> int:
    """Bytes of all tensors that anything refers to, each storage counted once."""
    gc.collect()
    found: dict[int, int] = {}
    for item in gc.get_objects():
        try:
            if isinstance(item, torch.Tensor):
                storage = item.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
        except (ReferenceError, RuntimeError):
            continue
    return sum(found.values())


def held_after_each(
    rank: int, world_size: int, settings: list[dict[str, Any]], times: int
) -> list[tuple[int, list[int]]]:
    """Worker: for each engine its bytes while it lives, and what is left after each closing."""
    device = torch.device("cpu")
    prepare_deepspeed(device)
    results = []
    for words in settings:
        config = EngineConfig(global_batch=world_size, bucket_elements=1024, **words)
        before, alive, left = held_bytes(), 0, []
        for _ in range(times):
            module = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
            engine = TrainingEngine(
                "net",
                module,
                config,
                OptimizerConfig(),
                world_size=world_size,
                device=device,
                bf16_weights=True,
            )
            bf16 = words["precision"] == "bf16" and words["zero_stage"] > 0
            dtype = torch.bfloat16 if bf16 else torch.float32
            loss = engine(torch.ones(1, WIDTH, dtype=dtype)).float().square().mean()
            engine.backward(loss)
            engine.step(1e-3)
            alive = held_bytes() - before
            engine.close()
            del engine, module, loss
            left.append(held_bytes() - before)
        results.append((alive, left))
    return results
