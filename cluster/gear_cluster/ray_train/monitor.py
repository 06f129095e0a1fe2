"""The thread beside fit(): shows progress, passes requests to stop on, loses patience."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

from gear_cluster.progress import ProgressPrinter
from gear_cluster.ray_train.coordinator import BoardState
from gear_cluster.ray_train.stop_policies import StopPolicy, StopRequest
from gear_cluster.signals import StopSignals

POLL_S = 0.3
NOT_STARTED = "the workers had not started"
NOTHING_SEEN = BoardState([], None, None, {}, "")


class Watch:
    """Looks at the board of an attempt until left."""

    def __init__(
        self,
        board: Any,
        stop: StopSignals,
        grace_s: float,
        advisers: Sequence[StopPolicy] = (),
        end_attempt: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            board: handle of the RunCoordinator actor.
            stop: signals to this process.
            grace_s: how long workers may take to stop after a signal.
            advisers: what else may ask for a stop.
            end_attempt: makes fit() raise; called where an adviser's patience is over.
        """
        self.step = 0
        """Of the newest report."""
        self.why_given_up = ""
        """Set before fit() is interrupted without a second Ctrl-C."""
        self.asked: StopRequest | None = None
        """What the workers were asked to stop for."""
        self._board = board
        self._stop = stop
        self._grace_s = grace_s
        self._advisers = advisers
        self._end_attempt = end_attempt
        self._asked_at = 0.0
        self._last = NOTHING_SEEN
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

        self._last = ray.get(self._board.look.remote())
        for progress in self._last.progress:
            self.step = progress.step
            self._printer.show(progress)
        return self._last

    def last_look(self) -> BoardState:
        """Look once more after the attempt; where the board is gone too, what was seen before."""
        import ray

        try:
            return self.look()
        except ray.exceptions.RayError:
            return self._last
        finally:
            self._printer.close()

    def _watch(self) -> None:
        import ray

        while not self._left.wait(POLL_S):
            try:
                self._pass_on_stop(self.look())
            except ray.exceptions.RayError:
                # The board or the cluster is gone, which fit() tells better.
                return

    def _pass_on_stop(self, state: BoardState) -> None:
        if self.why_given_up:
            return
        signalled = self._stop.requested.is_set()
        if signalled and not state.nodes:
            self._give_up(NOT_STARTED)
        elif signalled and (self.asked is None or self.asked.cause != "signal"):
            self._ask(StopRequest("signal", self._stop.reason, self._grace_s))
        elif self.asked is None:
            self._ask_advisers(state)
        elif time.monotonic() - self._asked_at > self.asked.grace_s:
            self._lose_patience(self.asked)

    def _ask_advisers(self, state: BoardState) -> None:
        for adviser in self._advisers:
            ask = adviser.advise(state)
            if ask is not None:
                self._printer.say(f"{ask.reason}: stopping with a checkpoint")
                self._ask(ask)
                return

    def _ask(self, ask: StopRequest) -> None:
        import ray

        self.asked, self._asked_at = ask, time.monotonic()
        ray.get(self._board.request_stop.remote(ask.reason))

    def _lose_patience(self, ask: StopRequest) -> None:
        late = f"workers did not stop within {ask.grace_s:.0f} s"
        if ask.cause == "signal":
            self._give_up(late)
        else:
            self._printer.say(late)
            self._asked_at = time.monotonic()
            self._end_attempt()

    def _give_up(self, why: str) -> None:
        self.why_given_up = why
        self._stop.insist_now()
