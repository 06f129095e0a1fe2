"""The items of a rank's batches: lanes read side by side, their shards fetched within limits."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

from gear_dist.data.fetching import ShardFetcher
from gear_dist.data.first_samples import Place
from gear_dist.data.lane_reader import LaneReader, SampleRef
from gear_dist.data.shard_reader import Shard


class BatchReader:
    """Lists of items, a batch each."""

    def __init__(
        self, turns: Sequence[Sequence[LaneReader]], fetcher: ShardFetcher, memory_bytes: int
    ) -> None:
        """Nothing is fetched yet.

        Args:
            turns: the lanes of the first batch, of the next, and so on; then from the start.
            fetcher: where the lanes have their shards from.
            memory_bytes: shards are fetched before they are needed while all together are no more.
        """
        self._turns = turns
        self._lanes = [lane for lanes in turns for lane in lanes]
        self._fetcher = fetcher
        self._memory_bytes = memory_bytes

    def peek(self) -> list[Place]:
        """The samples of the first batch."""
        return [place for lane in self._turns[0] for place in lane.peek()]

    def item_batches(self, prefetched: Mapping[Place, Shard]) -> Iterator[list[SampleRef]]:
        """Batch after batch, until the lanes end.

        Args:
            prefetched: samples of the first batch for which their shards are not waited.

        Raises:
            DataError: a shard is unavailable.
        """
        for lane in self._lanes:
            lane.read_ahead()
        for lanes in itertools.cycle(self._turns):
            items = [item for lane in lanes for item in lane.take(prefetched)]
            if not items:
                return
            yield items
            prefetched = {}
            # Not before the first: these reads would hold up those that it waits for.
            self._fetcher.start()
            self._read_ahead()

    def _read_ahead(self) -> None:
        """Fetch next windows, those first that are needed first, as far as there is room."""
        waiting = [lane for lane in self._lanes if lane.may_read_ahead]
        for lane in sorted(waiting, key=lambda lane: lane.batches_left):
            more = self._fetcher.bytes_of(lane.next_shards)
            if self._fetcher.held_bytes + more > self._memory_bytes:
                return
            lane.read_ahead()
