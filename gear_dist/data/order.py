"""The training order: which sample is at which position of the global sequence. No I/O, no torch.

The shards of a corpus, permuted by the epoch's seed, make one cyclic sequence of samples. From a
random place on, it is cut into `lanes` equal contiguous segments; inside a lane, windows of a few
shards are mixed by a seeded permutation. Global batch t takes the same number of samples of each
lane, in the order of the lanes; rank r of W serves the places [r G / W, (r + 1) G / W) of it, G
being the global batch, and so reads only the lanes under them. The global sequence does not depend
on the number of ranks. A mixture gives each corpus lanes in proportion to its weight.

Everything is computed where it is needed, from permutations of shards and of windows: a plan costs
the same for a thousand samples as for a hundred million.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import xxhash

Tail = Literal["drop", "repeat"]
_EPOCHS_KEPT = 4


class MixtureComponent(NamedTuple):
    """A corpus of the mixture, or all of them where they are simply joined."""

    counts: np.ndarray
    """(num_shards,) samples of each shard."""
    first_shard: int
    """Number of its first shard among all."""
    lanes: int


class LaneSlice(NamedTuple):
    """The places [start, stop) among a lane's samples of one global batch."""

    lane: int
    start: int
    stop: int


class Window(NamedTuple):
    """One reader's samples of a window of shards, in the order in which it sees them."""

    epoch: int
    shards: np.ndarray
    """(n,) shard numbers."""
    rows: np.ndarray
    """(n,) positions of the samples in their shards."""


class EpochCounts(NamedTuple):
    """Sample and step counts of one epoch of a mixture component."""

    samples: int
    steps: int
    """Global batches that make an epoch."""
    dropped: int
    """Samples of the corpus that an epoch leaves out (tail=drop)."""
    repeated: int
    """Samples that an epoch shows twice (tail=repeat)."""


class _Epoch(NamedTuple):
    """The cyclic sequence of a component in one epoch."""

    shards: np.ndarray
    """The component's shards in the epoch's order."""
    ends: np.ndarray
    """(num_shards,) samples up to the end of each."""
    offset: int
    """Where the epoch starts in the cycle, so that no sample is always in the tail."""


def hash_key(*numbers: int) -> int:
    """A 128-bit key for random numbers that depend on the given numbers alone."""
    text = "/".join(map(str, numbers)).encode()
    return xxhash.xxh3_128_intdigest(text)


def _random(*numbers: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=hash_key(*numbers)))


class Order:
    """The global sequence of a run."""

    def __init__(
        self,
        components: Sequence[MixtureComponent],
        *,
        global_batch: int,
        seed: int,
        window_shards: int,
        tail: Tail = "drop",
    ) -> None:
        """Nothing is computed yet.

        Args:
            components: the corpora, each with a sample at least, with their lanes.
            global_batch: samples G of an optimizer step; a multiple of the number of lanes.
            seed: shuffle seed.
            window_shards: shards of a lane that are mixed with one another; 0: all.
            tail: what becomes of the samples that do not fill a global batch.
        """
        self.lanes = sum(component.lanes for component in components)
        assert global_batch % self.lanes == 0
        self.global_batch = global_batch
        self.per_lane = global_batch // self.lanes
        self.components = tuple(components)
        self._seed = seed
        self.window_shards = window_shards
        self._tail = tail
        self._epochs: dict[tuple[int, int], _Epoch] = {}
        self.epoch_counts = tuple(map(self._count, components))

    def _count(self, component: MixtureComponent) -> EpochCounts:
        samples, per_step = int(component.counts.sum()), component.lanes * self.per_lane
        dropping = self._tail == "drop"
        steps = samples // per_step if dropping else -(-samples // per_step)
        rest = samples - steps * per_step
        return EpochCounts(samples, steps, max(rest, 0), max(-rest, 0))

    def lane_slices(self, rank: int, world_size: int) -> tuple[LaneSlice, ...]:
        """This rank's slices of every global batch, in order."""
        share = self.global_batch // world_size
        low, high, width = rank * share, (rank + 1) * share, self.per_lane
        return tuple(
            LaneSlice(lane, max(low - lane * width, 0), min(high - lane * width, width))
            for lane in range(low // width, (high - 1) // width + 1)
        )

    def windows(self, lane_slice: LaneSlice, first_step: int) -> Iterator[Window]:
        """The samples at `lane_slice` of the global batches from `first_step` on, without end."""
        number, lane = 0, lane_slice.lane
        while lane >= self.components[number].lanes:
            lane -= self.components[number].lanes
            number += 1
        epoch, step = divmod(first_step, self.epoch_counts[number].steps)
        while True:
            yield from self._lane_windows(number, lane, epoch, lane_slice, step)
            epoch, step = epoch + 1, 0

    def _lane_windows(
        self, number: int, lane: int, epoch: int, lane_slice: LaneSlice, first_step: int
    ) -> Iterator[Window]:
        """One lane of one component in one epoch."""
        component, length = self.components[number], self.epoch_counts[number].steps * self.per_lane
        sequence = self._epoch(number, epoch)
        pieces = _cut(sequence, sequence.offset + lane * length, length)
        sizes = pieces[:, 1]
        ends = np.cumsum(sizes)
        low = 0
        for window, high in enumerate(self._window_ends(component, ends)):
            start, stop = int(ends[low] - sizes[low]), int(ends[high - 1])
            first = max(start, first_step * self.per_lane)
            if first < stop:
                random = _random(self._seed, epoch, number, lane, window)
                mixed = random.permutation(stop - start)
                place = np.arange(start, stop) % self.per_lane
                mine = (place >= lane_slice.start) & (place < lane_slice.stop)
                mine[: first - start] = False
                if mine.any():
                    chosen, rows = _locate(pieces[low:high], mixed[mine])
                    shards = sequence.shards[chosen] + component.first_shard
                    yield Window(epoch, shards, rows)
            low = high

    def _window_ends(self, component: MixtureComponent, ends: np.ndarray) -> list[int]:
        """Cut a lane's pieces into windows of about `window_shards` shards' samples each."""
        if self.window_shards == 0:
            return [len(ends)]
        length = int(ends[-1])
        count = round(length / (self.window_shards * component.counts.mean()))
        cuts = np.arange(1, count) * (length / max(count, 1))
        inner = np.searchsorted(ends, cuts)
        before = np.where(inner > 0, ends[inner - 1], 0)
        nearest = inner + (ends[inner] - cuts <= cuts - before)
        return [*np.unique(nearest[(nearest > 0) & (nearest < len(ends))]).tolist(), len(ends)]

    def _epoch(self, number: int, epoch: int) -> _Epoch:
        found = self._epochs.get((number, epoch))
        if found is None:
            counts = self.components[number].counts
            random = _random(self._seed, epoch, number)
            shards = random.permutation(len(counts))
            ends = np.cumsum(counts[shards])
            found = _Epoch(shards, ends, int(random.integers(ends[-1])))
            while len(self._epochs) >= _EPOCHS_KEPT * len(self.components):
                self._epochs.pop(next(iter(self._epochs)))
            self._epochs[number, epoch] = found
        return found


def sequential_windows(
    counts: np.ndarray, batch_size: int, rank: int, world_size: int, limit: int
) -> Iterator[Window]:
    """A rank's part of the first `limit` samples in the manifest's order, a shard at a time."""
    position = 0
    for shard, count in enumerate(counts):
        positions = np.arange(position, min(limit, position + int(count)))
        mine = positions[positions // batch_size % world_size == rank]
        if mine.size:
            yield Window(0, np.full(mine.size, shard), mine - position)
        position += int(count)


def _cut(sequence: _Epoch, start: int, length: int) -> np.ndarray:
    """The pieces of shards that make up `length` samples of the cycle from `start` on.

    Returns:
        (n, 3) int64: place of the shard in the epoch's order, samples, first row; no piece is
        empty.
    """
    total = int(sequence.ends[-1])
    pieces = []
    while length > 0:
        start %= total
        stop = min(total, start + length)
        low = int(np.searchsorted(sequence.ends, start, side="right"))
        high = int(np.searchsorted(sequence.ends, stop, side="left")) + 1
        bounds = np.concatenate([[start], sequence.ends[low : high - 1], [stop]])
        place = np.arange(low, high)
        begins = np.where(place > 0, sequence.ends[place - 1], 0)
        pieces.append(np.stack([place, np.diff(bounds), bounds[:-1] - begins], axis=1))
        length -= stop - start
        start = stop
    joined = np.concatenate(pieces)
    return joined[joined[:, 1] > 0]


def _locate(pieces: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place of the shard and row of samples that are numbered through the pieces."""
    ends = np.cumsum(pieces[:, 1])
    found = np.searchsorted(ends, samples, side="right")
    rows = samples - (ends - pieces[:, 1])[found] + pieces[found, 2]
    return pieces[found, 0], rows


def choose_lanes(
    global_batch: int,
    world_size: int,
    *,
    at_least: int = 1,
    at_most: int = 1 << 62,
    weights: Sequence[float] = (1.0,),
) -> tuple[int, ...]:
    """Lanes of each component of a mixture.

    Their sum divides the global batch and is a multiple of the world size, so that each rank reads
    lanes of its own; among such sums the least that is `at_least` or more and gives every component
    its share of each batch to within one in a hundred, else the one that comes nearest. More than
    `at_most` are never taken where fewer are possible.

    Args:
        global_batch: samples of an optimizer step; a multiple of the world size.
        world_size: number of ranks.
        at_least: lanes that are wanted.
        at_most: lanes for which there is room.
        weights: positive, one per component.
    """
    sums = [
        lanes
        for lanes in range(world_size, global_batch + 1, world_size)
        if global_batch % lanes == 0 and lanes >= len(weights)
    ]
    sums = [lanes for lanes in sums if lanes <= at_most] or sums[:1]
    wide = [lanes for lanes in sums if lanes >= at_least] or sums[-1:]
    if not wide:
        return ()
    shares = np.array(weights) / sum(weights)
    errors = []
    for lanes in wide:
        split = split_lanes(lanes, weights)
        errors.append(float(np.abs(np.array(split) / lanes - shares).max()))
    good = [lanes for lanes, error in zip(wide, errors, strict=True) if error <= 0.01]
    return split_lanes(good[0] if good else wide[int(np.argmin(errors))], weights)


def split_lanes(lanes: int, weights: Sequence[float]) -> tuple[int, ...]:
    """`lanes` in proportion to the weights, at least one each, by largest remainders."""
    wanted = np.array(weights) / sum(weights) * lanes
    split = np.maximum(np.floor(wanted), 1).astype(int)
    while split.sum() < lanes:
        split[np.argmax(wanted - split)] += 1
    while split.sum() > lanes:
        split[np.argmax(np.where(split > 1, split - wanted, -np.inf))] -= 1
    return tuple(split.tolist())
