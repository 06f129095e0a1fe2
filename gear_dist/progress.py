"""How far long work has come: a line for people, and an estimate of the time left. No torch."""

import math
import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

from gear_dist.formatting import format_duration

_PLAIN_S = 10.0
_TERMINAL_S = 0.2
"""Seconds between changes of a line in place: more often is not readable."""


class StatusLine:
    """The present state of something: one line kept up to date on a terminal, else plain lines.

    tqdm would write its carriage returns into log files as well, where jobs are mostly read.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        every_s: float = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        stream: where it is written; None: standard output.
        every_s: seconds between plain lines; 0: each update has its own.
        clock: seconds, for tests.
        """
        self._stream = stream or sys.stdout
        self.in_place = self._stream.isatty()
        self._every_s = min(every_s, _TERMINAL_S) if self.in_place else every_s
        self._clock = clock
        self._shown = clock() if every_s else -math.inf
        self._open = False

    def update(self, line: Callable[[], str]) -> None:
        """Show a line, unless one was shown a moment ago; it is built only where it is shown."""
        now = self._clock() if self._every_s else math.inf
        if now - self._shown < self._every_s:
            return
        self._shown = now
        if self.in_place:
            self._rewrite(line())
        else:
            self.say(line())

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self.close()
        self._stream.write(line + "\n")
        self._stream.flush()

    def close(self, *, erase: bool = False) -> None:
        """End the line in place, so that what follows starts on its own; or erase it."""
        if self._open:
            self._stream.write("\r\x1b[K" if erase else "\n")
            self._stream.flush()
        self._open = False

    def _rewrite(self, line: str) -> None:
        columns = shutil.get_terminal_size((100, 24)).columns
        # Erasing to the end of the line removes the rest of a longer one before it.
        self._stream.write("\r" + line[: max(columns - 1, 20)] + "\x1b[K")
        self._stream.flush()
        self._open = True


class Pace:
    """Counts finished units of work, and estimates from them how long the rest takes."""

    def __init__(self, total: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Args:
        total: units in all; 0: unknown.
        clock: seconds, for tests.
        """
        self.total = total
        self.done = 0
        self._timed = 0
        self._clock = clock
        self._start = clock()

    def add(self, units: int = 1, *, timed: bool = True) -> None:
        """Count units; `timed=False`: found finished, so they say nothing about speed."""
        self.done += units
        self._timed += units if timed else 0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    @property
    def per_s(self) -> float:
        """Units a second, of those that were timed."""
        return self._timed / max(self.elapsed_s, 1e-6)

    @property
    def left_s(self) -> float:
        """Seconds that the rest will take; NaN where that is unknown."""
        rate = self.per_s
        return (self.total - self.done) / rate if rate > 0 and self.total else math.nan


class ImageProgress:
    """Counts finished images and says so now and then."""

    def __init__(
        self,
        title: str,
        total: int,
        *,
        every_s: float = _PLAIN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        title: what is counted.
        total: images in all; 0: unknown, so no time left is told.
        every_s: seconds between lines where there is no terminal.
        clock: seconds, for tests.
        """
        self._title = title
        self._pace = Pace(total, clock=clock)
        self._timed_bytes = 0
        self._line = StatusLine(sys.stderr, every_s=every_s, clock=clock)

    def advance(self, images: int, num_bytes: int = 0, *, timed: bool = True) -> None:
        """Count images; `timed=False`: found finished, so they say nothing about speed."""
        self._pace.add(images, timed=timed)
        self._timed_bytes += num_bytes if timed else 0
        self._line.update(self._text)

    def finish(self) -> float:
        """End the moving line; the seconds since the start."""
        self._line.close(erase=True)
        return self._pace.elapsed_s

    def _text(self) -> str:
        pace, seconds = self._pace, max(self._pace.elapsed_s, 1e-6)
        count = f"{pace.done:,}" + (f" of {pace.total:,}" if pace.total else "") + " images"
        speed = f"{pace.per_s:,.0f} images/s"
        if self._timed_bytes:
            speed += f", {self._timed_bytes / seconds / 1e6:,.0f} MB/s"
        left_s = pace.left_s
        left = "" if math.isnan(left_s) else f", {format_duration(left_s)} left"
        return f"{self._title}: {count}, {speed}{left}"
