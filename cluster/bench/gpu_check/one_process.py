"""Runs in this process, one after another: starting one takes longer than it runs."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from gear_cluster.local_launcher import process_group
from gear_cluster.rendezvous import Processes
from gear_cluster.signals import StopSignals
from gear_dist.distributed.worker_context import TrainProgress


@contextmanager
def one_process(device: str) -> Iterator[None]:
    """torch.distributed for any number of runs of one worker."""
    torch.set_num_threads(1)
    with (
        StopSignals(force_stop=lambda: sys.exit(1)) as stop,
        process_group(device, stop, Processes(0, 1, 0)),
    ):
        yield


class OneWorker:
    """The only worker of a run; see `gear_dist.distributed.worker_context.WorkerContext`."""

    rank, world_size, local_rank = 0, 1, 0

    def __init__(
        self, *, stop_after: int = 0, on_report: Callable[[TrainProgress], None] | None = None
    ) -> None:
        """
        Args:
            stop_after: steps after which the run is asked to stop; 0: never.
            on_report: gets each record of the run.
        """
        self._stop_after = stop_after
        self._on_report = on_report
        self._asked = 0

    def report(self, progress: TrainProgress) -> None:
        """See `WorkerContext`."""
        if self._on_report is not None:
            self._on_report(progress)

    def stop_requested(self) -> bool:
        """See `WorkerContext`; asked once a step."""
        self._asked += 1
        return 0 < self._stop_after <= self._asked
