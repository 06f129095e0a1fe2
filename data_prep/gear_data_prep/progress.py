"""Progress with an estimate of the time left: one moving line on a terminal, plain lines else."""

import sys
import time

_TERMINAL_SECONDS = 0.2
_PLAIN_SECONDS = 10.0


class Progress:
    """Counts finished images of a known total and prints now and then."""

    def __init__(self, title: str, total: int) -> None:
        self._title = title
        self._total = total
        self._done = 0
        self._timed = 0
        self._start = self._shown = time.monotonic()
        self._terminal = sys.stdout.isatty()

    def advance(self, images: int, *, timed: bool = True) -> None:
        """Count images; `timed=False`: found finished, so they say nothing about speed."""
        self._done += images
        self._timed += images if timed else 0
        now = time.monotonic()
        if now - self._shown >= (_TERMINAL_SECONDS if self._terminal else _PLAIN_SECONDS):
            self._shown = now
            print(
                ("\r\033[K" if self._terminal else "") + self._line(now),
                end="" if self._terminal else "\n",
                flush=True,
            )

    def finish(self) -> float:
        """End the moving line; the seconds since the start."""
        if self._terminal:
            print("\r\033[K", end="", flush=True)
        return time.monotonic() - self._start

    def _line(self, now: float) -> str:
        rate = self._timed / max(now - self._start, 1e-6)
        left = f", {(self._total - self._done) / rate:.0f} s left" if rate > 0 else ""
        share = f"{self._done:,} of {self._total:,} images"
        return f"{self._title}: {share}, {rate:,.0f} images/s{left}"
