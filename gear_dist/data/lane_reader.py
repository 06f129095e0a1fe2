"""One lane's samples in order, with the shards of the next window fetched meanwhile."""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gear_dist.data.fetching import ShardFetcher
from gear_dist.data.order import Window
from gear_dist.data.shard_reader import Shard


class Item(NamedTuple):
    """A sample on its way into a batch."""

    epoch: int
    number: int
    """Its shard."""
    row: int
    shard: Shard


class LaneReader:
    """Hands out the samples of a sequence of windows."""

    def __init__(self, windows: Iterator[Window], fetcher: ShardFetcher) -> None:
        self._windows = windows
        self._fetcher = fetcher
        self._ahead: deque[tuple[Window, list[int]]] = deque()
        self._position = 0
        self._shards: dict[int, Shard] = {}

    def read_ahead(self) -> None:
        """Start to fetch one window more; does nothing after the last."""
        window = next(self._windows, None)
        if window is not None:
            numbers = np.unique(window.shards).tolist()
            for number in numbers:
                self._fetcher.acquire(number)
            self._ahead.append((window, numbers))

    def take(self, count: int) -> list[Item]:
        """The next `count` samples, fewer where the windows end.

        Raises:
            DataError: a shard cannot be had, see `ShardFetcher.get`.
        """
        items: list[Item] = []
        while len(items) < count and self._ahead:
            window, numbers = self._ahead[0]
            stop = min(self._position + count - len(items), len(window.rows))
            span = slice(self._position, stop)
            pairs = zip(window.shards[span].tolist(), window.rows[span].tolist(), strict=True)
            items += [Item(window.epoch, number, row, self._get(number)) for number, row in pairs]
            self._position = stop
            if stop == len(window.rows):
                self._leave(numbers)
        return items

    def _get(self, number: int) -> Shard:
        shard = self._shards.get(number)
        if shard is None:
            shard = self._shards[number] = self._fetcher.get(number)
        return shard

    def _leave(self, numbers: list[int]) -> None:
        self._ahead.popleft()
        self._position = 0
        self._shards.clear()
        self.read_ahead()
        for number in numbers:
            self._fetcher.release(number)
