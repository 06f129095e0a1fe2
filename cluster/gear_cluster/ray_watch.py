"""The thread beside fit(): shows progress, passes a stop request on, loses patience."""

import threading
import time
from typing import Any, Self

from gear_cluster.progress import ProgressPrinter
from gear_cluster.progress_board import BoardState
from gear_cluster.stop import StopSignals

POLL_S = 0.3
NOT_STARTED = "the workers had not started"


class Watch:
    """Looks at the board until left. Ends fit(), which holds the main thread, by an interrupt."""

    def __init__(self, board: Any, stop: StopSignals, grace_s: float) -> None:
        self.step = 0
        """Of the newest report."""
        self.why_given_up = ""
        """Set before fit() is interrupted without a second Ctrl-C."""
        self._board = board
        self._stop = stop
        self._grace_s = grace_s
        self._asked_at: float | None = None
        self._left = threading.Event()
        self._printer = ProgressPrinter()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()
        self._printer.close()

    def look(self) -> BoardState:
        """Show what was reported since the last look."""
        import ray

        state: BoardState = ray.get(self._board.look.remote())
        for progress in state.progress:
            self.step = progress.step
            self._printer.show(progress)
        return state

    def close_line(self) -> None:
        """End the progress line after the last look."""
        self._printer.close()

    def _watch(self) -> None:
        import ray

        while not self._left.wait(POLL_S):
            try:
                self._pass_on_stop(self.look())
            except ray.exceptions.RayError:
                # The cluster is gone, which fit() tells better.
                return

    def _pass_on_stop(self, state: BoardState) -> None:
        import ray

        if self.why_given_up or not self._stop.requested.is_set():
            return
        if not state.started:
            self._give_up(NOT_STARTED)
        elif self._asked_at is None:
            self._asked_at = time.monotonic()
            ray.get(self._board.request_stop.remote(self._stop.reason))
        elif time.monotonic() - self._asked_at > self._grace_s:
            self._give_up(f"workers did not stop within {self._grace_s:.0f} s")

    def _give_up(self, why: str) -> None:
        self.why_given_up = why
        self._stop.insist_now()
