"""Skips a step on all ranks when a loss or gradient is not finite on any."""

from collections.abc import Iterable

import torch
from torch import Tensor

from gear_dist.distributed import collectives
from gear_dist.training.networks import Networks
from gear_dist.training.steps import Metrics


class NanGuard:
    """Skips the step of all networks on all ranks, and restores buffers that the forwards changed.

    Attributes:
        num_skipped: steps skipped since the run began.
        num_consecutive: of those, the last ones without a good step between.
        last_nonfinite: what was not finite when a step was last skipped.
    """

    def __init__(self, device: torch.device, skipped: int = 0):
        self.num_skipped = skipped
        self.num_consecutive = 0
        self.last_nonfinite = ""
        self._device = device
        self._buffers: list[Tensor] = []
        self._losses: Metrics = {}

    def begin(self, networks: Networks) -> None:
        """Before a step's first forward: batch statistics move in forwards."""
        self._buffers = [buffer.clone() for buffer in networks.buffers()]
        self._losses = {}

    def add(self, metrics: Metrics) -> None:
        """A micro-batch's losses. Does not synchronise."""
        for name, value in metrics.items():
            if name.endswith("_loss"):
                self._losses[name] = self._losses.get(name, 0) + value

    def check(self, networks: Networks, stop_requested: bool) -> bool:
        """Decide on the step, between its last backward and the optimizer's step. Collective.

        The only host synchronisation of a step; the stop flag is reduced along with it.

        Returns:
            Whether any rank asks to stop.
        """
        watched = dict(self._losses)
        for name, engine in networks.engines.items():
            watched[f"{name}'s gradient"] = engine.gradient_size()
        values = torch.stack([value.float() for value in watched.values()])
        bad = (~values.isfinite()).any()
        flags = torch.stack([bad.float(), bad.new_tensor(stop_requested).float()])
        is_bad, stop = collectives.any_rank(flags)
        networks.skip_next_step(is_bad)
        if is_bad:
            self.num_skipped += 1
            self.num_consecutive += 1
            self.last_nonfinite = _name_bad(list(watched), values)
            _copy(self._buffers, networks.buffers())
        else:
            self.num_consecutive = 0
        return stop


def _name_bad(names: list[str], values: Tensor) -> str:
    """What is not finite on any rank. Collective."""
    mine = {name for name, fine in zip(names, values.isfinite().tolist(), strict=True) if not fine}
    found = set().union(*collectives.gather_objects(mine))
    return ", ".join(name for name in names if name in found)


@torch.no_grad()
def _copy(source: Iterable[Tensor], target: Iterable[Tensor]) -> None:
    for a, b in zip(source, target, strict=True):
        b.copy_(a)
