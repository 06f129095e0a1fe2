"""Ctrl-C and SIGTERM as a request: the first asks for a clean stop, a second Ctrl-C insists."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self


class StopSignals:
    """While entered, SIGINT and SIGTERM set `requested`; a second SIGINT calls `insist`.

    Outside the main thread, where Python allows no signal handlers, entering changes nothing.
    """

    def __init__(self, insist: Callable[[], None]) -> None:
        self.requested = threading.Event()
        self.reason = ""
        self._insist = insist
        self._interrupts = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
        if self._interrupts > 1:
            self._insist()
        self.reason = self.reason or signal.Signals(number).name
        self.requested.set()
