"""Settings of a run as a whole: names, workers, checkpoints, logs. No torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from gear_dist.config.checks import (
    MAX_THREADS,
    require,
    require_at_least,
    require_at_most,
    require_fraction,
)
from gear_dist.storage.paths import local_path


@dataclass(frozen=True)
class RunSection:
    MAY_CHANGE: ClassVar[tuple[str, ...]] = (
        "name",
        "root",
        "launcher",
        "workers",
        "device",
        "threads",
        "resume",
        "min_workers",
        "max_failures",
        "hang_timeout_s",
        "preemption_grace_s",
    )

    name: str = "run"
    """Name of the run; also the name of its folder under `root`."""
    root: str = "runs"
    """Folder that holds run folders; on a cluster a path that every node shares."""
    seed: int = 0
    """Seed of initialisation, data order, dropouts and sample grids."""
    launcher: Literal["ray", "local"] = "ray"
    """ray: Ray Train starts the workers; local: this process is the worker (or torchrun's)."""
    workers: int = 0
    """Worker processes; 0: one a GPU, or two where there is no GPU (launcher=ray)."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto: CUDA where a device is visible, else CPU."""
    threads: int = 1
    """CPU threads of a worker's tensor operations; on CPU one a process is fastest."""
    resume: str = "auto"
    """auto: resume from the run's newest good checkpoint; none: start over, refused if the folder \
already holds a run; a checkpoint's folder: resume from that one, of this run or of another one \
with the same configuration."""
    min_workers: int = 0
    """Fewest workers that training continues with when nodes are gone (launcher=ray): each start \
uses as many as there is capacity for, up to `workers`. 0: always `workers`."""
    max_failures: int = 3
    """Consecutive crashes (kill, out of memory, lost node, hang) survived by restarting from the \
newest checkpoint (launcher=ray). The count starts over with every new checkpoint; preemptions do \
not count."""
    hang_timeout_s: int = 600
    """Seconds without a step after which a worker writes the stacks of its threads to its log and \
ends; must exceed the longest pause between steps. A slow checkpoint that makes progress does not \
count. 0: never."""
    preemption_grace_s: int = 30
    """Seconds that workers have to write a checkpoint when one of their nodes is draining; then \
training resumes elsewhere from the previous checkpoint."""

    def __post_init__(self) -> None:
        names = ("workers", "seed", "min_workers", "max_failures", "hang_timeout_s")
        require_at_least("run", self, 0, *names)
        require_at_least("run", self, 1, "threads", "preemption_grace_s")
        require_at_most("run", self, MAX_THREADS, "threads")
        require(
            self.workers == 0 or self.min_workers <= self.workers,
            f"run.min_workers={self.min_workers} must be at most run.workers={self.workers}",
        )
        ok = bool(self.name) and "/" not in self.name and self.name not in (".", "..")
        require(ok, f"run.name={self.name!r} must be a plain folder name")

    @property
    def folder(self) -> Path:
        """The run folder."""
        return local_path(self.root, "run.root") / self.name


@dataclass(frozen=True)
class CheckpointConfig:
    MAY_CHANGE: ClassVar[tuple[str, ...]] = ("*",)

    every_steps: int = 1000
    """Steps between checkpoints; one is also written at stage ends and when the run is stopped."""
    address: str = ""
    """s3://BUCKET/PREFIX or a folder; checkpoints go to its subfolder named after the run; empty: \
the run folder's checkpoints/. The S3 endpoint is data.endpoint."""
    asynchronous: bool = True
    """Training continues while a checkpoint is written, from a copy of the state in host memory."""
    keep_last: int = 2
    """Newest checkpoints that are kept."""
    keep_every_steps: int = 0
    """Also keep checkpoints whose step is a multiple of this; 0: none."""
    best_metric: str = ""
    """Name of a metric of metrics.jsonl, the lower the better, whose best checkpoint is kept as \
well; empty: none."""
    max_failed_saves: int = 3
    """Saves that fail in a row after which the run ends with exit code 5; until then a failed one \
costs a warning. 0: no limit."""
    take_over: str = ""
    """Id of another run whose address and checkpoints this run takes over, as the refusal names \
it; the other stops at its next checkpoint. Empty: none."""

    def __post_init__(self) -> None:
        require_at_least("checkpoint", self, 1, "every_steps", "keep_last")
        require_at_least("checkpoint", self, 0, "keep_every_steps", "max_failed_saves")


@dataclass(frozen=True)
class LogConfig:
    MAY_CHANGE: ClassVar[tuple[str, ...]] = ("*",)

    every_steps: int = 20
    """Steps between metric records; the only regular host synchronisation."""
    grid_every_steps: int = 0
    """Steps between reconstruction and sample grids; 0: at stage ends only."""
    usage_window_tokens: int = 65536
    """Codebook usage is the share of codes used by the last N tokens of all workers; this is N."""
    wandb: Literal["off", "auto"] = "off"
    """auto: log to Weights & Biases, offline where WANDB_API_KEY is missing or \
WANDB_MODE=offline."""
    wandb_project: str = "gear-dist"
    """Weights & Biases project."""

    def __post_init__(self) -> None:
        require_at_least("log", self, 1, "every_steps", "usage_window_tokens")
        require_at_least("log", self, 0, "grid_every_steps")


@dataclass(frozen=True)
class CollapseConfig:
    MAY_CHANGE: ClassVar[tuple[str, ...]] = ("*",)

    patience: int = 3
    """Metric records (log.every_steps) in a row with the same trouble after which the run ends \
with exit code 4; it warns at the first, and takes no checkpoint while the trouble lasts. 0: off."""
    usage_floor: float = 0.1
    """The codebook has collapsed where fewer codes are in use than this share of the most that \
were at any record of the stage, each over log.usage_window_tokens tokens of all workers."""

    def __post_init__(self) -> None:
        require_at_least("collapse", self, 0, "patience")
        require_fraction("collapse", self, "usage_floor")
