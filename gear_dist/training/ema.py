"""Exponential moving average of an engine's fp32 masters, partitioned as they are."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from gear_dist.training.engine import TrainingEngine


class ExponentialMovingAverage:
    """average <- decay average + (1 - decay) weight, on each rank's own partition, in fp32."""

    def __init__(self, engine: TrainingEngine, decay: float):
        self._engine = engine
        self._decay = decay
        self.averages = [master.clone() for master in engine.masters()]

    @torch.no_grad()
    def update(self) -> None:
        """One step. Does not communicate or synchronise."""
        torch._foreach_lerp_(self.averages, self._engine.masters(), 1 - self._decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Swap the averages into the engine's master weights for the duration of the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, master in zip(self.averages, self._engine.masters(), strict=True):
            kept = master.clone()
            master.copy_(average)
            average.copy_(kept)

    def full_state(self) -> dict[str, Tensor]:
        """The averaged network, whole and by name, on the CPU. Collective."""
        with self.swapped_in():
            return self._engine.full_state()
