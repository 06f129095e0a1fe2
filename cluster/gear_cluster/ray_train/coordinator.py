"""Ray actor between workers and driver: progress and failures up, stop requests down."""

import asyncio
from collections import deque
from typing import NamedTuple

from gear_dist.distributed.worker_context import TrainProgress, TrainResult
from gear_dist.errors import UserError

KEPT_PROGRESS = 1000


class WorkerFailure(NamedTuple):
    """What ended a worker, as it saw it itself."""

    rank: int
    summary: str
    """Exception class and first line."""
    log: str
    """File on the worker's node that holds the traceback."""
    user_error: UserError | None
    """The error itself where a user can act on it."""


class CoordinatorState(NamedTuple):
    """What one poll of the coordinator returns."""

    progress: list[TrainProgress]
    """Reported since the last look."""
    failure: WorkerFailure | None
    """The first failure: later ones are mostly its consequences (lost connections)."""
    result: TrainResult | None
    """Rank 0's, once it has returned."""
    nodes: dict[int, str]
    """Node id by rank, of the workers that have entered the worker function."""
    notice: str
    """Why a worker is about to be terminated; empty if none is."""


class RunCoordinator:
    """Body of the Ray actor, one an attempt. Asynchronous, so that waiting workers do not hold up
    reports."""

    def __init__(self) -> None:
        self._progress: deque[TrainProgress] = deque(maxlen=KEPT_PROGRESS)
        self._failure: WorkerFailure | None = None
        self._result: TrainResult | None = None
        self._nodes: dict[int, str] = {}
        self._notice = ""
        self._stop = asyncio.Event()
        self._reason = ""

    async def begin(self, rank: int, node: str) -> None:
        """A worker enters the worker function on the node of this id."""
        self._nodes[rank] = node

    async def publish(self, progress: TrainProgress) -> None:
        """Add a report of rank 0."""
        self._progress.append(progress)

    async def finish(self, result: TrainResult) -> None:
        """Keep rank 0's outcome."""
        self._result = result

    async def fail(self, failure: WorkerFailure) -> None:
        """Keep the first failure."""
        self._failure = self._failure or failure

    async def give_notice(self, reason: str) -> None:
        """A worker expects its end: all are to stop with a checkpoint.

        Once one has failed or the run is over, Ray ends the others, which it announces by SIGTERM
        as well: that is a consequence, and no preemption that would excuse the failure.
        """
        if self._failure is None and self._result is None:
            self._notice = self._notice or reason
        await self.request_stop(reason)

    async def poll(self) -> CoordinatorState:
        """Take what was reported since the last look."""
        news = list(self._progress)
        self._progress.clear()
        return CoordinatorState(news, self._failure, self._result, dict(self._nodes), self._notice)

    async def request_stop(self, reason: str) -> None:
        """Ask all workers to stop."""
        self._reason = self._reason or reason
        self._stop.set()

    async def wait_for_stop(self) -> str:
        """Return the reason once a stop is asked for."""
        await self._stop.wait()
        return self._reason
