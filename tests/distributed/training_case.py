"""A run small enough to train in a second a dozen times over, and hosts that ask it to stop."""

import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors.torch import load_file

from gear_dist.checkpoints.address import checkpoint_storage
from gear_dist.checkpoints.layout import split_key
from gear_dist.checkpoints.listing import find_published
from gear_dist.config.loading import config_yaml, load_config
from gear_dist.config.schema import RunConfig
from gear_dist.distributed.worker_context import TrainProgress, TrainResult
from gear_dist.training.trainer import train_worker

SETTINGS = (
    "run.launcher=local",
    "run.device=cpu",
    "data.image_size=32",
    "tokenizer.codebook_size=32",
    "tokenizer.code_width=4",
    "tokenizer.channels=32",
    "tokenizer.channel_multipliers=[1,1,1]",
    "tokenizer.num_res_blocks=1",
    "tokenizer.latent_channels=32",
    "generator.width=32",
    "generator.num_layers=2",
    "generator.num_heads=2",
    "generator.num_classes=16",
    "generator.tap_layer=1",
    "discriminator.width=8",
    "discriminator.num_layers=1",
    "losses.lpips_weight=0",
    "losses.gradient_weight=1",
    "teacher.name=convnet",
    "alignment.projector_width=32",
    "optimizer.ema_decay=0.5",
    "optimizer.warmup_steps=2",
    "engine.global_batch=8",
    "log.every_steps=1",
    "checkpoint.every_steps=1000",
)


def tiny_config(root: Path, corpus: str, teacher: Path, *overrides: str) -> RunConfig:
    """The configuration; `overrides` come last."""
    places = [
        f"run.root={root}",
        f"data.train={corpus}/train",
        f"data.validation={corpus}/validation",
        f"teacher.path={teacher}",
    ]
    return load_config(None, [*SETTINGS, *places, *overrides])


class StoppingContext:
    """Asks to stop after a step; keeps what it is told."""

    def __init__(self, rank: int, world_size: int, stop_at: int | None = None):
        self.rank = rank
        self.world_size = world_size
        self.local_rank = rank
        self.reports: list[TrainProgress] = []
        self._stop_at = stop_at

    def report(self, progress: TrainProgress) -> None:
        self.reports.append(progress)

    def stop_requested(self) -> bool:
        reached = self.reports[-1].step if self.reports else 0
        # Asked during a step, before that is reported: the run stops after it.
        return self._stop_at is not None and reached + 1 >= self._stop_at


def train(config: RunConfig, rank: int, world_size: int, stop_at: int | None = None) -> TrainResult:
    """Train in this worker; only rank 0 knows of the request to stop."""
    return train_worker(config, StoppingContext(rank, world_size, stop_at if rank == 0 else None))


def train_until(rank: int, world_size: int, config: RunConfig, stop_at: int) -> TrainResult:
    """Worker: train until a stop that only rank 0 knows of."""
    return train(config, rank, world_size, stop_at)


def newest_state(config: RunConfig) -> dict[str, Any]:
    """Everything in the newest checkpoint: whole tensors by name, and the facts."""
    storage = checkpoint_storage(config.run, config.checkpoint, config.data.endpoint)
    newest = find_published(storage)[-1]
    found: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for part in newest.manifest.parts:
        data = storage.read(f"{newest.folder}/{part.name}")
        for stored, values in safetensors.torch.load(data).items():
            key, start = split_key(stored)
            found.setdefault(key, []).append((start, values))
    tensors = {}
    for key, stretches in found.items():
        end, parts = 0, []
        for start, values in sorted(stretches, key=lambda item: item[0]):
            assert start == end, f"{key} has a gap or is there twice at {end}"
            end += len(values)
            parts.append(values)
        tensors[key] = torch.cat(parts)
    return {"tensors": tensors, "state": newest.manifest.state, "step": newest.manifest.step}


def kind_of(state: dict[str, Any], network: str, kind: str) -> dict[str, torch.Tensor]:
    """Tensors of a state: `weights`, `average`, `buffers` or the optimizer's, by name."""
    prefix = f"{network}.{kind}."
    tensors = state["tensors"]
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two nested states differ, bit for bit; names of runs and seconds are not compared."""
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [path]
    if isinstance(a, dict):
        keys = (a.keys() | b.keys()) - {"elapsed_s", "run"}
        return [d for k in sorted(keys) for d in differences(a.get(k), b.get(k), f"{path}.{k}")]
    if isinstance(a, (list, tuple)):
        pairs = zip(a, b, strict=True)
        return [d for i, (x, y) in enumerate(pairs) for d in differences(x, y, f"{path}[{i}]")]
    return [] if a == b else [f"{path}: {a} and {b}"]


def straight_and_resumed_each(
    rank: int, world_size: int, config: RunConfig, variants: list[tuple[str, ...]], stops: list[int]
) -> list[list[str]]:
    """Worker: for each variant a straight run, and one stopped and resumed at each of `stops`.

    Returns what differs between their last checkpoints, by variant.
    """
    found = []
    for i, variant in enumerate(variants):
        changed = with_overrides(config, *variant)
        straight, broken = named(changed, f"straight{i}"), named(changed, f"broken{i}")
        assert train(straight, rank, world_size).state == "done"
        for stop in stops:
            result = train(broken, rank, world_size, stop)
            assert (result.state, result.step) == ("interrupted", stop), result
        assert train(broken, rank, world_size).state == "done"
        states = newest_state(straight), newest_state(broken)
        found.append(differences(*states) + differences(published(straight), published(broken)))
    return found


def published(config: RunConfig) -> dict[str, Any]:
    """The run's weights files, by network and name."""
    folder = config.run.folder / "weights"
    return {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}


def with_overrides(config: RunConfig, *overrides: str) -> RunConfig:
    """The configuration with settings replaced, by way of a file as a user's would be."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_text(config_yaml(config))
        return load_config(path, list(overrides))


def named(config: RunConfig, name: str) -> RunConfig:
    """The configuration under another run name."""
    return with_overrides(config, f"run.name={name}")


def train_each(
    rank: int, world_size: int, configs: list[RunConfig]
) -> list[tuple[TrainResult, Any]]:
    """Worker: outcome and the last checkpoint's state of each configuration."""
    return [(train(config, rank, world_size), newest_state(config)) for config in configs]
