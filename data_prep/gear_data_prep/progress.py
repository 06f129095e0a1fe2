"""Progress of work on images, on standard error: how many, how fast, how long still."""

import math
import sys
import time
from collections.abc import Callable

from gear_dist.formatting import format_duration
from gear_dist.progress import Pace, StatusLine

_PLAIN_S = 10.0


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
