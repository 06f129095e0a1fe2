"""The worker's interface to its launcher: report progress, receive stop requests.

The launchers (a plain process, torchrun, Ray) live in gear_cluster; the worker knows only this.
"""

from typing import Literal, NamedTuple, Protocol


class TrainProgress(NamedTuple):
    """One log interval of rank 0, as the terminal shows it. Holds plain numbers, no tensors."""

    step: int
    """Optimizer steps done, over all stages."""
    total_steps: int
    """Optimizer steps of the whole run."""
    stage: str
    """Name of the stage: tokenizer, joint or generator."""
    metrics: dict[str, float]
    """The record of metrics.jsonl: losses, images_per_s, eta_s, codebook_usage, ..."""
    message: str = ""
    """A line of its own, such as where a checkpoint was written."""


class TrainResult(NamedTuple):
    """How a worker ended. Errors are raised, not returned."""

    state: Literal["done", "interrupted"]
    step: int
    """Optimizer steps done."""
    reason: str = ""
    """Why it was interrupted; empty when done."""


class WorkerContext(Protocol):
    """Handed to `train_worker`; torch.distributed is initialised before it is called."""

    rank: int
    world_size: int
    local_rank: int

    def report(self, progress: TrainProgress) -> None:
        """Show progress. Called by rank 0 once a log interval; does not communicate by tensors."""
        ...

    def stop_requested(self) -> bool:
        """Whether this rank knows of a request to stop. Ranks may learn of it at different steps,
        so the worker makes them agree by a collective. Cheap enough to ask every step."""
        ...
