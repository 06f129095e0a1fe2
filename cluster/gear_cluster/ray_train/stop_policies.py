"""Why a driver itself asks its workers to stop: a node is draining, or there is room for more."""

import time
from typing import Literal, NamedTuple, Protocol

from gear_cluster.ray_train.capacity import WorkerCounts, count_capacity, draining_nodes
from gear_cluster.ray_train.coordinator import CoordinatorState

DRAIN_POLL_S = 1.0
GROWTH_POLL_S = 5.0


class StopRequest(NamedTuple):
    """A request to stop with a checkpoint."""

    cause: Literal["signal", "preemption", "growth"]
    """signal: the command ends; else training continues with other workers."""
    reason: str
    grace_s: float
    """How long workers may take to stop before the attempt is ended."""


class StopPolicy(Protocol):
    """Polled while workers train; returns a StopRequest when they should stop."""

    def check(self, state: CoordinatorState) -> StopRequest | None:
        """A reason to stop now, if there is one."""
        ...


class PreemptionPolicy:
    """Sees nodes that Ray drains (SIGTERM to `ray start --block`, `ray drain-node`, an autoscaler,
    the end of a Kubernetes pod), and workers that were sent SIGTERM."""

    def __init__(self, driver_node: str, grace_s: float) -> None:
        self._driver_node = driver_node
        self._grace_s = grace_s
        self._next_poll = 0.0

    def check(self, state: CoordinatorState) -> StopRequest | None:
        """Where a node of the run is draining: stop; where it is the driver's: end the command."""
        if state.notice:
            return StopRequest("preemption", state.notice, self._grace_s)
        if time.monotonic() < self._next_poll:
            return None
        self._next_poll = time.monotonic() + DRAIN_POLL_S
        draining = draining_nodes()
        if self._driver_node in draining:
            return StopRequest("signal", "the driver's node is draining", self._grace_s)
        ranks = [rank for rank, node in sorted(state.nodes.items()) if node in draining]
        if not ranks:
            return None
        text = f"the node of worker {', '.join(map(str, ranks))} is draining"
        return StopRequest("preemption", text, self._grace_s)


class GrowthPolicy:
    """Requests a restart when capacity for more workers is seen twice in a row."""

    def __init__(self, worker_counts: WorkerCounts, num_workers: int, grace_s: float) -> None:
        self._worker_counts = worker_counts
        self._num_workers = num_workers
        self._grace_s = grace_s
        self._next_poll = time.monotonic() + GROWTH_POLL_S
        self._seen = 0

    def check(self, state: CoordinatorState) -> StopRequest | None:
        """Once all workers run: whether more of them would fit."""
        complete = len(state.nodes) == self._num_workers
        if (
            self._num_workers == self._worker_counts.most
            or not complete
            or time.monotonic() < self._next_poll
        ):
            return None
        self._next_poll = time.monotonic() + GROWTH_POLL_S
        target = self._worker_counts.largest(
            self._num_workers + count_capacity(self._worker_counts.needs)
        )
        seen_before, self._seen = self._seen, target
        if target <= self._num_workers or seen_before <= self._num_workers:
            return None
        return StopRequest("growth", f"capacity for {target} workers is available", self._grace_s)
