"""The order of an epoch: which samples each rank sees, from the seed and the counts alone.

Shards are permuted, taken in windows of a few, and the samples of a window are mixed with one
another; so a rank holds few shards at a time. The resulting global sequence does not depend on the
number of ranks: global batch b is its positions [b G, (b + 1) G), rank r's part of it the
positions [b G + r B, b G + (r + 1) B), with G = B x world size. The tail short of G is dropped.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import xxhash


class Window(NamedTuple):
    """One rank's samples of a window of shards, in the order in which it sees them."""

    epoch: int
    shards: np.ndarray
    """(n,) shard numbers."""
    rows: np.ndarray
    """(n,) positions of the samples in their shards."""


class Share(NamedTuple):
    """A rank's place among the ranks."""

    batch_size: int
    rank: int
    world_size: int

    @property
    def global_batch(self) -> int:
        """Samples of one batch of all ranks."""
        return self.batch_size * self.world_size


def hash_key(*numbers: int) -> int:
    """A 128-bit key for random numbers that depend on the given numbers alone."""
    text = "/".join(map(str, numbers)).encode()
    return xxhash.xxh3_128_intdigest(text)


def epoch_windows(
    counts: np.ndarray,
    share: Share,
    *,
    seed: int,
    epoch: int,
    window_shards: int,
    first_batch: int = 0,
) -> Iterator[Window]:
    """A rank's windows of an epoch from its batch `first_batch` on; empty ones are left out.

    Args:
        counts: (num_shards,) samples of each shard.
        share: this rank's batch size and place.
        seed: seed of the order.
        epoch: number of the epoch.
        window_shards: shards of a window.
        first_batch: batches of the epoch that are passed over without reading.
    """
    random = np.random.Generator(np.random.Philox(key=hash_key(seed, epoch)))
    order = random.permutation(len(counts))
    usable = int(counts.sum()) // share.global_batch * share.global_batch
    position = 0
    for start in range(0, len(order), window_shards):
        chosen = order[start : start + window_shards]
        size = int(counts[chosen].sum())
        window_random = np.random.Generator(np.random.Philox(key=hash_key(seed, epoch, start)))
        mixed = window_random.permutation(size)
        positions = np.arange(position, position + size)
        position += size
        mine = positions // share.batch_size % share.world_size == share.rank
        mine &= (positions < usable) & (positions >= first_batch * share.global_batch)
        if mine.any():
            shards, rows = _locate(counts, chosen, mixed[mine])
            yield Window(epoch, shards, rows)


def sequential_windows(counts: np.ndarray, share: Share, limit: int) -> Iterator[Window]:
    """A rank's part of the first `limit` samples in the manifest's order, a shard at a time."""
    position = 0
    for shard, count in enumerate(counts):
        positions = np.arange(position, min(limit, position + int(count)))
        mine = positions[positions // share.batch_size % share.world_size == share.rank]
        if mine.size:
            yield Window(0, np.full(mine.size, shard), mine - position)
        position += int(count)


def _locate(
    counts: np.ndarray, chosen: np.ndarray, samples: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Shard and row of samples that are numbered through the chosen shards."""
    ends = np.cumsum(counts[chosen])
    place = np.searchsorted(ends, samples, side="right")
    return chosen[place], samples - (ends - counts[chosen])[place]
