"""Ends a process that makes no progress, with the stacks of all its threads."""

import faulthandler
from types import TracebackType
from typing import Self

HANG_MARK = b"Timeout ("
"""How the first line of the stacks begins, by which a launcher knows a hang in a worker's log."""


class HangWatch:
    """While entered, `beat` must be called at least every `timeout_s` seconds (0: no limit).

    Else the stacks of all threads go to file descriptor 2 and the process ends with exit code 1,
    whatever it waits for: the watching thread needs neither Python nor its lock.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def beat(self) -> None:
        """Progress was made: the time begins anew. Takes about 0.1 ms."""
        if self._timeout_s > 0:
            faulthandler.dump_traceback_later(self._timeout_s, exit=True, file=2)

    def __enter__(self) -> Self:
        self.beat()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if self._timeout_s > 0:
            faulthandler.cancel_dump_traceback_later()
