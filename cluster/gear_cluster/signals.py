"""Ctrl-C and SIGTERM: the first requests a clean stop, a second Ctrl-C stops immediately."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self


class StopSignals:
    """While entered, SIGINT and SIGTERM set `requested`; a second SIGINT calls `force_stop`.

    Outside the main thread, where Python allows no signal handlers, entering changes nothing.
    """

    def __init__(self, force_stop: Callable[[], None]) -> None:
        self.requested = threading.Event()
        self.reason = ""
        self._force_stop = force_stop
        self._interrupts = 0
        self._forced = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Take the signals; again where a library has taken them since."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            replaced = signal.signal(number, self._handle)
            self._previous.setdefault(number, replaced)

    def force_stop_from_thread(self) -> None:
        """Call `force_stop` in the main thread, from another one."""
        self._forced = True
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
        if self._interrupts > 1 or self._forced:
            self._force_stop()
        if not self.requested.is_set():
            self.reason = signal.Signals(number).name
            self.requested.set()
            self._announce()

    def _announce(self) -> None:
        if os.environ.get("RANK", "0") != "0":
            return
        line = f"gear-dist: {self.reason}: stopping with a checkpoint; Ctrl-C again stops at once\n"
        # print() could be what the signal has interrupted.
        os.write(2, ("\n" + line if sys.stderr.isatty() else line).encode())
