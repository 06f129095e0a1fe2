"""Shards from storage into memory, several at once: retried, kept while they are in use."""

import random
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from gear_dist.data.corpus import Corpus
from gear_dist.data.manifest import ShardInfo
from gear_dist.data.shard_cache import ShardCache
from gear_dist.data.shard_reader import Shard, find_damage, parse_shard, refuse_shard
from gear_dist.errors import DataError, StorageError
from gear_dist.storage.base import MissingObjectError, Storage

THREADS = 6
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
DAMAGED_READS = 3
LEAST_PATIENCE_S = 5.0
"""A fetch slower than this, and much slower than the others, is hedged with a second request."""
_PATIENCE_FACTOR = 4


class FetchSettings(NamedTuple):
    """How shards are fetched."""

    attempts: int = 3
    """Tries of a shard before the error is raised."""
    cache: ShardCache | None = None
    keep: bool = False
    """Keep every shard that was fetched: for a corpus that fits into memory."""


class _Open(NamedTuple):
    future: Future[Shard]
    users: int


class ShardFetcher:
    """Shards by their number over all corpora.

    `acquire` queues a fetch and returns at once, `get` waits for it, `release` forgets the shard
    when nobody else has acquired it. One thread calls these. Fetches begin with the first `get`,
    or with `start`.
    """

    def __init__(self, corpora: Sequence[Corpus], settings: FetchSettings) -> None:
        self._sources = [
            (corpus.storage, info) for corpus in corpora for info in corpus.manifest.shards
        ]
        self._settings = settings
        self._open: dict[int, _Open] = {}
        self.held_bytes = 0
        """Of all shards that are here or on their way."""
        self._lock = threading.Lock()
        self._started = threading.Event()
        self._closing = threading.Event()
        self._pool = ThreadPoolExecutor(THREADS, "gear-fetch")
        self._seconds = 0.0
        self._fetched = 0

    def start(self) -> None:
        """Begin to fetch what is queued."""
        self._started.set()

    def acquire(self, shard: int) -> None:
        """Have a shard fetched; every call needs a `release`."""
        held = self._open.get(shard)
        self.held_bytes += self.bytes_of([shard])
        future = self._pool.submit(self._fetch, shard) if held is None else held.future
        users = int(self._settings.keep) if held is None else held.users
        self._open[shard] = _Open(future, users + 1)

    def get(self, shard: int) -> Shard:
        """An acquired shard.

        A fetch that takes far longer than others is tried a second time beside the first, so that
        one slow object or connection does not hold up everything.

        Raises:
            DataError: missing, damaged, or not to be had in the given number of attempts.
        """
        self.start()
        held = self._open[shard]
        try:
            return held.future.result(timeout=self._patience_s())
        except TimeoutError:
            if held.future.done():
                raise
        both = [held.future, self._pool.submit(self._fetch, shard)]
        done, slower = wait(both, return_when=FIRST_COMPLETED)
        good = [future for future in done if future.exception() is None]
        winner = (good or [*slower, *done])[0]
        self._open[shard] = held._replace(future=winner)
        return winner.result()

    def later(self, shard: int) -> Callable[[], Shard]:
        """Gets an acquired shard, from any thread and even when it has been released."""
        future = self._open[shard].future

        def get() -> Shard:
            self.start()
            return future.result()

        return get

    def bytes_of(self, shards: Sequence[int]) -> int:
        """What acquiring shards would add to `held_bytes`."""
        return sum(self._sources[shard][1].bytes for shard in shards if shard not in self._open)

    def is_near(self, info: ShardInfo) -> bool:
        """Whether a shard is in the local cache."""
        return self._settings.cache is not None and self._settings.cache.holds(info)

    def release(self, shard: int) -> None:
        """End one `acquire`."""
        held = self._open[shard]
        if held.users == 1:
            del self._open[shard]
            self.held_bytes -= self.bytes_of([shard])
        else:
            self._open[shard] = _Open(held.future, held.users - 1)

    def name(self, shard: int) -> str:
        """The shard's full address."""
        storage, info = self._sources[shard]
        return f"{storage.address}/{info.key}"

    def close(self) -> None:
        """End the threads; what is being read is waited for."""
        self._closing.set()
        self.start()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._open.clear()

    def _patience_s(self) -> float:
        with self._lock:
            mean = self._seconds / max(self._fetched, 1)
        return max(LEAST_PATIENCE_S, _PATIENCE_FACTOR * mean)

    def _fetch(self, shard: int) -> Shard:
        self._started.wait()
        storage, info = self._sources[shard]
        started = time.monotonic()
        cache = self._settings.cache
        data = self._from_cache(info)
        if data is None:
            data = self._read(storage, info)
            if cache is not None:
                _keep(cache, info, data)
        found = parse_shard(storage, info, data)
        with self._lock:
            self._seconds += time.monotonic() - started
            self._fetched += 1
        return found

    def _from_cache(self, info: ShardInfo) -> bytes | None:
        cache = self._settings.cache
        data = None if cache is None else cache.read(info)
        if cache is not None and data is not None and find_damage(info, data):
            cache.discard(info)
            return None
        return data

    def _read(self, storage: Storage, info: ShardInfo) -> bytes:
        """A shard's bytes, compared with the manifest.

        Wrong bytes may have changed on the way, so they too are read again, but not as often.
        """
        damaged = 0
        for attempt in range(1, self._settings.attempts + 1):
            last = attempt == self._settings.attempts or self._closing.is_set()
            try:
                data = storage.read(info.key)
            except MissingObjectError:
                refuse_shard(storage, info, "it is missing")
            except DataError:
                if last:
                    raise
            else:
                problem = find_damage(info, data)
                if not problem:
                    return data
                damaged += 1
                if last or damaged == DAMAGED_READS:
                    refuse_shard(storage, info, problem)
            pause_s = min(FIRST_PAUSE_S * 2 ** (attempt - 1), LONGEST_PAUSE_S)
            self._closing.wait(pause_s * random.uniform(0.5, 1))
        raise AssertionError("the last attempt returns or raises")


def _keep(cache: ShardCache, info: ShardInfo, data: bytes) -> None:
    try:
        cache.write(info, data)
    except StorageError as error:
        warnings.warn(f"data.cache_folder: {error}; the shard is not kept", stacklevel=2)
