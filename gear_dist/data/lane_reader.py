"""One lane's samples in order, with the shards of the next window fetched meanwhile."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from gear_dist.data.fetching import ShardFetcher
from gear_dist.data.first_samples import Place
from gear_dist.data.order import Window
from gear_dist.data.shard_reader import Shard

_WINDOWS_HELD = 2
"""The one that samples are taken of, and the next."""


class SampleRef(NamedTuple):
    """A sample on its way into a batch."""

    epoch: int
    number: int
    """Its shard."""
    row: int
    get_shard: Callable[[], Shard]
    """Waits only where `prefetched` is there."""
    prefetched: Shard | None = None
    """The sample as a shard of one row, where it came ahead of its shard."""


class _Drawn(NamedTuple):
    window: Window
    shards: list[int]


class LaneReader:
    """Hands out the samples of a sequence of windows, an equal number for each batch."""

    def __init__(self, windows: Iterator[Window], per_batch: int, fetcher: ShardFetcher) -> None:
        self._windows = windows
        self._per_batch = per_batch
        self._fetcher = fetcher
        self._drawn: deque[_Drawn] = deque()
        self._num_held = 0
        self._position = 0
        self._ready: dict[int, Callable[[], Shard]] = {}

    def peek(self) -> list[Place]:
        """The samples of the next batch; nothing is fetched."""
        found: list[Place] = []
        number = 0
        while len(found) < self._per_batch and self._draw(number + 1):
            window = self._drawn[number].window
            first = self._position if number == 0 else 0
            rows = slice(first, first + self._per_batch - len(found))
            found += zip(window.shards[rows].tolist(), window.rows[rows].tolist(), strict=True)
            number += 1
        return found

    @property
    def may_read_ahead(self) -> bool:
        """Whether the next window is there and nobody fetches it yet."""
        return self._num_held < _WINDOWS_HELD and self._draw(self._num_held + 1)

    @property
    def batches_left(self) -> int:
        """Batches for which what is held lasts."""
        held = sum(len(self._drawn[i].window.rows) for i in range(self._num_held))
        return (held - self._position) // self._per_batch

    @property
    def next_shards(self) -> list[int]:
        """Of the window that is fetched next."""
        return self._drawn[self._num_held].shards

    def read_ahead(self) -> None:
        """Start to fetch one window more; does nothing after the last."""
        if self._draw(self._num_held + 1):
            for number in self.next_shards:
                self._fetcher.acquire(number)
            self._num_held += 1

    def take(self, prefetched: Mapping[Place, Shard]) -> list[SampleRef]:
        """The samples of the next batch, fewer where the windows end.

        Args:
            prefetched: samples for which their shards are not waited.

        Raises:
            DataError: a shard is unavailable, see `ShardFetcher.get`.
        """
        items: list[SampleRef] = []
        while len(items) < self._per_batch and self._draw(1):
            if self._num_held == 0:
                self.read_ahead()
            window = self._drawn[0].window
            stop = min(self._position + self._per_batch - len(items), len(window.rows))
            rows = slice(self._position, stop)
            for place in zip(window.shards[rows].tolist(), window.rows[rows].tolist(), strict=True):
                sample = prefetched.get(place)
                shard = self._await(place[0]) if sample is None else self._fetcher.later(place[0])
                items.append(SampleRef(window.epoch, *place, shard, sample))
            self._position = stop
            if stop == len(window.rows):
                self._leave()
        return items

    def _await(self, number: int) -> Callable[[], Shard]:
        getter = self._ready.get(number)
        if getter is None:
            self._fetcher.get(number)
            getter = self._ready[number] = self._fetcher.later(number)
        return getter

    def _leave(self) -> None:
        self._ready.clear()
        shards = self._drawn.popleft().shards
        self._num_held -= 1
        self._position = 0
        if self._num_held == 0:
            self.read_ahead()  # before what both windows may share is let go
        for number in shards:
            self._fetcher.release(number)

    def _draw(self, count: int) -> bool:
        """Fill the queue to this many windows; returns whether that succeeded."""
        while len(self._drawn) < count:
            window = next(self._windows, None)
            if window is None:
                return False
            self._drawn.append(_Drawn(window, np.unique(window.shards).tolist()))
        return True
