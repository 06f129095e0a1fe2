"""Ends a process that makes no progress, with the stacks of all its threads."""

import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from gear_dist.errors import UserError

HANG_MARK = b"Timeout ("
"""First line of a faulthandler dump; the launcher searches worker logs for it."""
_LOOK_S = 0.5
_RECORD_S = 10.0
"""For `on_hang`, and for native code that holds Python's lock: then the process ends without."""


class HangError(UserError):
    """No progress was made for too long."""


class HangWatchdog:
    """While entered, `beat` must be called at least every `timeout_s` seconds (0: no limit).

    Else the stacks of all threads go to file descriptor 2 and the process ends with exit code 1,
    whatever it waits for: the last resort needs neither Python nor its lock.
    """

    def __init__(self, timeout_s: float, on_hang: Callable[[], None] | None = None) -> None:
        """
        Args:
            timeout_s: limit in seconds.
            on_hang: called before the process ends, in a thread; what it raises is dropped.
        """
        self._timeout_s = timeout_s
        self._on_hang = on_hang
        self._deadline = 0.0
        self._left = threading.Event()
        self._left.set()

    def beat(self) -> None:
        """Progress was made: the time starts over, while entered. Takes about 0.1 ms."""
        if self._timeout_s > 0 and not self._left.is_set():
            self._deadline = time.monotonic() + self._timeout_s
            limit = self._timeout_s + (_RECORD_S if self._on_hang else 0)
            faulthandler.dump_traceback_later(limit, exit=True, file=2)

    def _watch(self) -> None:
        while not self._left.wait(_LOOK_S):
            if time.monotonic() >= self._deadline:
                self._end()

    def _end(self) -> None:
        os.write(2, HANG_MARK + f"{self._timeout_s:g} s)!\n".encode())
        faulthandler.dump_traceback(file=2, all_threads=True)
        assert self._on_hang is not None
        with contextlib.suppress(Exception):
            self._on_hang()
        os._exit(HangError.exit_code)

    def __enter__(self) -> Self:
        self._left.clear()
        self.beat()
        if self._timeout_s > 0 and self._on_hang is not None:
            threading.Thread(target=self._watch, name="hang-watch", daemon=True).start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._left.set()
        if self._timeout_s > 0:
            faulthandler.cancel_dump_traceback_later()
