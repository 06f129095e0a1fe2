"""Why a driver itself asks its workers to stop: a node is draining, or there is room for more."""

import time
from typing import Literal, NamedTuple, Protocol

from gear_cluster.ray_train.capacity import WorkerCounts, count_capacity, draining_nodes
from gear_cluster.ray_train.coordinator import BoardState

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
    """Asked every moment while workers train; asks for a stop where it has a reason."""

    def advise(self, state: BoardState) -> StopRequest | None:
        """A reason to stop now, if there is one."""
        ...


class PreemptionPolicy:
    """Sees nodes that Ray drains (SIGTERM to `ray start --block`, `ray drain-node`, an autoscaler,
    the end of a Kubernetes pod), and workers that were sent SIGTERM."""

    def __init__(self, driver_node: str, grace_s: float) -> None:
        self._driver_node = driver_node
        self._grace_s = grace_s
        self._next_look = 0.0

    def advise(self, state: BoardState) -> StopRequest | None:
        """Where a node of the run is draining: stop; where it is the driver's: end the command."""
        if state.notice:
            return StopRequest("preemption", state.notice, self._grace_s)
        if time.monotonic() < self._next_look:
            return None
        self._next_look = time.monotonic() + DRAIN_POLL_S
        draining = draining_nodes()
        if self._driver_node in draining:
            return StopRequest("signal", "the driver's node is draining", self._grace_s)
        ranks = [rank for rank, node in sorted(state.nodes.items()) if node in draining]
        if not ranks:
            return None
        text = f"the node of worker {', '.join(map(str, ranks))} is draining"
        return StopRequest("preemption", text, self._grace_s)


class GrowthAdviser:
    """Sees that a run with too few workers could have more, twice in a row."""

    def __init__(self, sizes: WorkerCounts, size: int, grace_s: float) -> None:
        self._sizes = sizes
        self._size = size
        self._grace_s = grace_s
        self._next_look = time.monotonic() + GROWTH_POLL_S
        self._seen = 0

    def advise(self, state: BoardState) -> StopRequest | None:
        """Once all workers run: whether more of them would fit."""
        complete = len(state.nodes) == self._size
        if self._size == self._sizes.most or not complete or time.monotonic() < self._next_look:
            return None
        self._next_look = time.monotonic() + GROWTH_POLL_S
        target = self._sizes.largest(self._size + count_capacity(self._sizes.needs))
        seen_before, self._seen = self._seen, target
        if target <= self._size or seen_before <= self._size:
            return None
        return StopRequest("growth", f"there is room for {target} workers", self._grace_s)
