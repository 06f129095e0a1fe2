"""Samples that cannot be used: named, counted, and too many of them an error."""

import threading
import warnings

from gear_dist.errors import DataError

_WARNINGS = 20


class BadSamples:
    """Counts one worker's bad samples, and those of the epoch that it is in. Thread-safe."""

    def __init__(self, allowed: int) -> None:
        """Nothing is bad yet.

        Args:
            allowed: different bad samples of an epoch that are skipped.
        """
        self._allowed = allowed
        self._lock = threading.Lock()
        self._epoch = 0
        self._in_epoch: set[tuple[int, int]] = set()
        self._known: set[tuple[int, int]] = set()
        self._names: list[str] = []

    @property
    def count(self) -> int:
        """Different bad samples so far."""
        return len(self._known)

    def take_names(self) -> list[str]:
        """Those found since the last call: address, key and what is wrong."""
        with self._lock:
            names, self._names = self._names, []
        return names

    def record(self, epoch: int, place: tuple[int, int], message: str) -> None:
        """Note a bad sample; a second time in an epoch it does not count.

        Args:
            epoch: epoch in which it came up.
            place: shard and row.
            message: name of the sample, and what is wrong with it.

        Raises:
            DataError: more bad samples than allowed.
        """
        with self._lock:
            if epoch > self._epoch:
                self._epoch = epoch
                self._in_epoch.clear()
            self._in_epoch.add(place)
            found = len(self._in_epoch)
            if place not in self._known:
                self._known.add(place)
                self._names.append(message)
                if len(self._known) <= _WARNINGS:
                    warnings.warn(f"sample skipped: {message}", stacklevel=2)
        if found > self._allowed:
            raise DataError(
                f"{message}; that makes {found} bad samples on this worker in one epoch, more than "
                f"data.max_bad_share allows ({self._allowed}): remove them and shard again, or "
                "raise that"
            )
