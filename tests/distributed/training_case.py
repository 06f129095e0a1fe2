"""A run small enough to train in a second a dozen times over, and hosts that ask it to stop."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from gear_dist.checkpoint import CheckpointStore
from gear_dist.config import RunConfig
from gear_dist.config_files import load_config, save_config
from gear_dist.host import Outcome, Progress
from gear_dist.run_folder import RunFolder
from gear_dist.storage import open_storage
from gear_dist.trainer import train_worker

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
    "log.checkpoint_every_steps=1000",
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


class StoppingHost:
    """Asks to stop once a step is reported; keeps what it is told."""

    def __init__(self, rank: int, world_size: int, stop_at: int | None = None):
        self.rank = rank
        self.world_size = world_size
        self.local_rank = rank
        self.reports: list[Progress] = []
        self._stop_at = stop_at

    def report(self, progress: Progress) -> None:
        self.reports.append(progress)

    def stop_requested(self) -> bool:
        reached = self.reports[-1].step if self.reports else 0
        return self._stop_at is not None and reached >= self._stop_at


def train(config: RunConfig, rank: int, world_size: int, stop_at: int | None = None) -> Outcome:
    """Train in this worker; only rank 0 knows of the request to stop."""
    return train_worker(config, StoppingHost(rank, world_size, stop_at if rank == 0 else None))


def newest_part(config: RunConfig) -> dict[str, Any]:
    """This rank's part of the newest checkpoint."""
    store = CheckpointStore(open_storage(str(RunFolder(config.run.folder).checkpoints)), 1)
    parts = store.load_latest()
    assert parts is not None
    return parts[1]


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two nested states differ, bit for bit; seconds are not compared."""
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [path]
    if isinstance(a, dict):
        keys = (a.keys() | b.keys()) - {"elapsed_s"}
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
            outcome = train(broken, rank, world_size, stop)
            assert (outcome.state, outcome.step) == ("interrupted", stop), outcome
        assert train(broken, rank, world_size).state == "done"
        parts = newest_part(straight), newest_part(broken)
        if changed.engine.zero_stage == 3:
            for part in parts:
                _drop_padded(part)
        found.append(differences(*parts) + differences(published(straight), published(broken)))
    return found


def _drop_padded(part: dict[str, Any]) -> None:
    """Leave out ZeRO-3's flat weights: their padding is memory that nobody ever writes.

    The optimizer's moments stay, and the published averages hold every weight by name.
    """
    for network in part["networks"].values():
        network.pop("masters")
        network.pop("averages", None)


def published(config: RunConfig) -> dict[str, Any]:
    """The run's weights files, by network and name."""
    folder = config.run.folder / "weights"
    return {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}


def with_overrides(config: RunConfig, *overrides: str) -> RunConfig:
    """The configuration with settings replaced, by way of a file as a user's would be."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        save_config(config, path)
        return load_config(path, list(overrides))


def named(config: RunConfig, name: str) -> RunConfig:
    """The configuration under another run name."""
    return with_overrides(config, f"run.name={name}")


def train_each(rank: int, world_size: int, configs: list[RunConfig]) -> list[tuple[Outcome, Any]]:
    """Worker: outcome and this rank's last checkpoint part of each configuration."""
    return [(train(config, rank, world_size), newest_part(config)) for config in configs]
