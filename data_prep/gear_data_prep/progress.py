"""Progress with an estimate of the time left: one moving line on a terminal, plain lines else."""

import sys
import time

_TERMINAL_SECONDS = 0.2
_PLAIN_SECONDS = 10.0


class ProgressLine:
    """Counts finished images and prints now and then, on standard error."""

    def __init__(self, title: str, total: int) -> None:
        """Args:
        title: what is counted.
        total: images in all; 0: unknown, so no time left is told.
        """
        self._title = title
        self._total = total
        self._done = 0
        self._timed = 0
        self._timed_bytes = 0
        self._start = self._shown = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def advance(self, images: int, num_bytes: int = 0, *, timed: bool = True) -> None:
        """Count images; `timed=False`: found finished, so they say nothing about speed."""
        self._done += images
        self._timed += images if timed else 0
        self._timed_bytes += num_bytes if timed else 0
        now = time.monotonic()
        if now - self._shown >= (_TERMINAL_SECONDS if self._terminal else _PLAIN_SECONDS):
            self._shown = now
            print(
                ("\r\033[K" if self._terminal else "") + self._line(now),
                end="" if self._terminal else "\n",
                file=sys.stderr,
                flush=True,
            )

    def finish(self) -> float:
        """End the moving line; the seconds since the start."""
        if self._terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        return time.monotonic() - self._start

    def _line(self, now: float) -> str:
        seconds = max(now - self._start, 1e-6)
        rate = self._timed / seconds
        known = rate > 0 and self._total
        left = f", {(self._total - self._done) / rate:.0f} s left" if known else ""
        share = f"{self._done:,}" + (f" of {self._total:,}" if self._total else "") + " images"
        speed = f"{rate:,.0f} images/s"
        if self._timed_bytes:
            speed += f", {self._timed_bytes / seconds / 1e6:,.0f} MB/s"
        return f"{self._title}: {share}, {speed}{left}"
