"""Thread that runs beside fit(): shows progress, forwards stop requests, enforces grace periods."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

from gear_cluster.progress import ProgressPrinter
from gear_cluster.ray_train.coordinator import CoordinatorState
from gear_cluster.ray_train.stop_policies import StopPolicy, StopRequest
from gear_cluster.signals import StopSignals

POLL_S = 0.3
NOT_STARTED = "the workers had not started"
NOTHING_SEEN = CoordinatorState([], None, None, {}, "")


class AttemptMonitor:
    """Polls the coordinator of an attempt until it is left."""

    def __init__(
        self,
        coordinator: Any,
        stop: StopSignals,
        grace_s: float,
        policies: Sequence[StopPolicy] = (),
        end_attempt: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            coordinator: handle of the RunCoordinator actor.
            stop: signals to this process.
            grace_s: how long workers may take to stop after a signal.
            policies: what else may ask for a stop.
            end_attempt: makes fit() raise; called where an policy's patience is over.
        """
        self.step = 0
        """Of the newest report."""
        self.why_forced = ""
        """Set before fit() is interrupted without a second Ctrl-C."""
        self.requested: StopRequest | None = None
        """What the workers were asked to stop for."""
        self._coordinator = coordinator
        self._stop = stop
        self._grace_s = grace_s
        self._policies = policies
        self._end_attempt = end_attempt
        self._requested_at = 0.0
        self._last = NOTHING_SEEN
        self._left = threading.Event()
        self._printer = ProgressPrinter()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()
        self._printer.close()

    def poll(self) -> CoordinatorState:
        """Show what was reported since the last look."""
        import ray

        self._last = ray.get(self._coordinator.poll.remote())
        for progress in self._last.progress:
            self.step = progress.step
            self._printer.show(progress)
        return self._last

    def last_poll(self) -> CoordinatorState:
        """Poll once more after the attempt; if the coordinator is gone, return the last state."""
        import ray

        try:
            return self.poll()
        except ray.exceptions.RayError:
            return self._last
        finally:
            self._printer.close()

    def _run(self) -> None:
        import ray

        while not self._left.wait(POLL_S):
            try:
                self._forward_stop(self.poll())
            except ray.exceptions.RayError:
                # The coordinator or the cluster is gone, which fit() tells better.
                return

    def _forward_stop(self, state: CoordinatorState) -> None:
        if self.why_forced:
            return
        signalled = self._stop.requested.is_set()
        if signalled and not state.nodes:
            self._force_stop(NOT_STARTED)
        elif signalled and (self.requested is None or self.requested.cause != "signal"):
            self._request(StopRequest("signal", self._stop.reason, self._grace_s))
        elif self.requested is None:
            self._check_policies(state)
        elif time.monotonic() - self._requested_at > self.requested.grace_s:
            self._end_late(self.requested)

    def _check_policies(self, state: CoordinatorState) -> None:
        for policy in self._policies:
            request = policy.check(state)
            if request is not None:
                self._printer.say(f"{request.reason}: stopping with a checkpoint")
                self._request(request)
                return

    def _request(self, request: StopRequest) -> None:
        import ray

        self.requested, self._requested_at = request, time.monotonic()
        ray.get(self._coordinator.request_stop.remote(request.reason))

    def _end_late(self, request: StopRequest) -> None:
        late = f"workers did not stop within {request.grace_s:.0f} s"
        if request.cause == "signal":
            self._force_stop(late)
        else:
            self._printer.say(late)
            self._requested_at = time.monotonic()
            self._end_attempt()

    def _force_stop(self, why: str) -> None:
        self.why_forced = why
        self._stop.force_stop_from_thread()
