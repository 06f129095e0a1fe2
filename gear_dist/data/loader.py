"""Batches of crops from sharded corpora, with an exact position.

What a rank yields is a function of seed, step, lanes and its place among the ranks; see order.py
for the order. Crop, flip and caption are keyed by (seed, epoch, sample), so they do not depend on
the rank either.
"""

import math
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gear_dist.config import DataConfig
from gear_dist.data.bad_samples import BadSamples
from gear_dist.data.batches import Batch, BatchMaker
from gear_dist.data.corpus import Corpus, check_same_classes, open_corpus
from gear_dist.data.fetching import FetchSettings, ShardFetcher
from gear_dist.data.lane_reader import Item, LaneReader
from gear_dist.data.order import Order, Part, choose_lanes, sequential_windows, split_lanes
from gear_dist.data.read_ahead import ReadAhead
from gear_dist.data.shard_cache import ShardCache
from gear_dist.errors import ConfigError, DataError

KEEP_BYTES = 256 << 20
"""Corpora up to this size are kept in memory, and mixed as a whole."""


class Share(NamedTuple):
    """A rank's place among the ranks."""

    batch_size: int
    """Samples of a batch of this rank."""
    rank: int = 0
    world_size: int = 1
    accumulation: int = 1
    """Batches of this rank that make up its part of a global batch."""

    @property
    def global_batch(self) -> int:
        """Samples of an optimizer step: of all ranks and all accumulated batches."""
        return self.batch_size * self.world_size * self.accumulation


class ShardLoader:
    """Endless training batches, and finite validation batches, of one rank."""

    def __init__(
        self,
        corpora: Sequence[Corpus],
        data: DataConfig,
        *,
        share: Share,
        seed: int = 0,
        num_classes: int,
    ) -> None:
        """Nothing is read yet.

        Args:
            corpora: the corpus, or several to be mixed.
            data: settings; the addresses in it are not used.
            share: this rank's batch size and place.
            seed: seed of order, crops, flips and choice of captions.
            num_classes: labels must be below.

        Raises:
            DataError: an empty corpus, one with more classes than `num_classes`, corpora whose
                classes differ.
            ConfigError: weights or lanes that do not fit.
        """
        for corpus in corpora:
            _check_corpus(corpus, corpora[0], data, num_classes)
        self.corpora = tuple(corpora)
        self._data = data
        self._share = share
        self._seed = seed
        shards = [info for corpus in corpora for info in corpus.manifest.shards]
        self._counts = np.array([info.samples for info in shards], np.int64)
        self._keep = sum(info.bytes for info in shards) <= KEEP_BYTES
        self._num_classes = num_classes
        self._order = self._plan(self._first_lanes())
        self._samples_per_epoch = sum(tally.samples for tally in self._order.tallies)
        self._step, self._micro = 0, 0
        self._reader: ReadAhead[Batch] | None = None
        self.bad_samples = self._new_count(self._samples_per_epoch // share.world_size)

    # -- the plan ---------------------------------------------------------------------------

    def _first_lanes(self) -> tuple[int, ...]:
        """Lanes of each part, for a run that starts."""
        weights = _weights(self._data, len(self.corpora))
        global_batch, lanes = self._share.global_batch, self._data.lanes
        if lanes and (global_batch % lanes or lanes < len(weights)):
            raise ConfigError(
                f"data.lanes={lanes}: use a divisor of engine.global_batch={global_batch}, at "
                f"least {len(weights)}, or 0"
            )
        if lanes:
            return split_lanes(lanes, weights)
        if self._keep:
            found = choose_lanes(global_batch, 1, 1, weights)
        else:
            wanted = self._data.shuffle_buffer_shards
            found = choose_lanes(global_batch, self._share.world_size, wanted, weights)
        if not found:
            raise ConfigError(
                f"engine.global_batch={global_batch} has no room for {len(weights)} corpora: "
                "raise it"
            )
        return found

    def _plan(self, lanes: Sequence[int]) -> Order:
        """The order, with one part a corpus, or one for all where there are no weights."""
        sizes = [len(corpus.manifest.shards) for corpus in self.corpora]
        sizes = sizes if len(lanes) > 1 else [sum(sizes)]
        ends = np.cumsum(sizes).tolist()
        parts = [
            Part(self._counts[end - size : end], end - size, part_lanes)
            for size, end, part_lanes in zip(sizes, ends, lanes, strict=True)
        ]
        buffer = self._data.shuffle_buffer_shards
        return Order(
            parts,
            global_batch=self._share.global_batch,
            seed=self._seed,
            window_shards=0 if self._keep else math.ceil(buffer / sum(lanes)),
            tail=self._data.tail,
        )

    @property
    def batches_per_epoch(self) -> int:
        """Batches of each rank in an epoch (of the first corpus of a weighted mixture)."""
        return self._order.tallies[0].steps * self._share.accumulation

    def facts(self) -> dict[str, Any]:
        """What is read and in which order, for the record of a run."""
        lanes = [part.lanes for part in self._order.parts]
        return {
            "corpora": [corpus.storage.address for corpus in self.corpora],
            "global_batch": self._order.global_batch,
            "lanes": lanes,
            "shares": [count / self._order.lanes for count in lanes],
            "epochs": [tally._asdict() for tally in self._order.tallies],
            "tail": self._data.tail,
            "decoding": self._data.decoding,
        }

    def check_global_batch(self) -> None:
        """Raise DataError where a corpus does not fill its part of one global batch."""
        for tally, part in zip(self._order.tallies, self._order.parts, strict=True):
            if tally.steps == 0:
                address = self.corpora[0].storage.address
                raise DataError(
                    f"{address}: has {tally.samples} images, fewer than its "
                    f"{part.lanes * self._order.per_lane} of a batch of all workers: lower "
                    "engine.global_batch, add images, or set data.tail=repeat"
                )

    # -- batches ----------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Batch]:
        """Batches without end, from the current position; a former iteration is closed.

        Raises:
            DataError: as `check_global_batch`; while iterating: a missing or corrupt shard, too
                many bad samples, a label out of range.
        """
        self.check_global_batch()
        self.close()
        self._reader = ReadAhead(self._training_batches(), self._data.prefetch_batches)
        return self._consume(self._reader)

    def validation_batches(self, limit: int = 0) -> Iterator[Batch]:
        """The first `limit` images over all ranks (0: all) once: centre crops, manifest order.

        Nothing is dropped, so the last batches may be smaller and a rank may get one batch more
        than another; both are equal where `limit` is a multiple of the global batch. The training
        position does not move.
        """
        share, total = self._share, int(self._counts.sum())
        limit = min(limit, total) if limit else total
        windows = sequential_windows(
            self._counts, share.batch_size, share.rank, share.world_size, limit
        )
        fetcher = self._new_fetcher()
        lane = LaneReader(windows, fetcher)
        lane.read_ahead()
        lane.read_ahead()
        lists = iter(lambda: lane.take(share.batch_size), [])
        try:
            yield from self._maker(fetcher).batches(lists, self._new_count(limit), augment=False)
        finally:
            fetcher.close()

    def close(self) -> None:
        """Stop reading ahead; iterating again starts at the current position."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _consume(self, reader: ReadAhead[Batch]) -> Iterator[Batch]:
        try:
            for batch in reader:
                self._micro += 1
                if self._micro == self._share.accumulation:
                    self._step, self._micro = self._step + 1, 0
                yield batch
        finally:
            reader.close()

    def _training_batches(self) -> Generator[Batch, None, None]:
        fetcher = self._new_fetcher()
        lists = self._item_lists(fetcher, self._step, self._micro)
        try:
            yield from self._maker(fetcher).batches(lists, self.bad_samples, augment=True)
        finally:
            fetcher.close()

    def _item_lists(self, fetcher: ShardFetcher, step: int, micro: int) -> Iterator[list[Item]]:
        """This rank's samples, batch by batch, from a position on."""
        share = self._share
        places = self._order.places(share.rank, share.world_size)
        lanes = [LaneReader(self._order.windows(place, step), fetcher) for place in places]
        for _ in range(2):
            for lane in lanes:
                lane.read_ahead()
        while True:
            items: list[Item] = []
            for lane, place in zip(lanes, places, strict=True):
                items += lane.take(place.stop - place.start)
            for batch in range(micro, share.accumulation):
                yield items[batch * share.batch_size : (batch + 1) * share.batch_size]
            micro = 0

    def _new_fetcher(self) -> ShardFetcher:
        data = self._data
        cache = ShardCache(Path(data.cache_folder), data.cache_bytes) if data.cache_folder else None
        return ShardFetcher(self.corpora, FetchSettings(data.read_attempts, cache, self._keep))

    def _maker(self, fetcher: ShardFetcher) -> BatchMaker:
        return BatchMaker(
            self._data,
            seed=self._seed,
            num_classes=self._num_classes,
            first_samples=np.cumsum(self._counts) - self._counts,
            shard_name=fetcher.name,
        )

    def _new_count(self, samples: int) -> BadSamples:
        return BadSamples(int(self._data.max_bad_share * samples))

    # -- position ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The position of the next batch to be yielded, whatever has been read ahead.

        It holds for any number of ranks, with the lanes of the run's start, unless it is inside a
        global batch (`micro` is not 0).
        """
        return {
            "epoch": self._step // max(self._order.tallies[0].steps, 1),
            "step": self._step,
            "micro": self._micro,
            "lanes": [part.lanes for part in self._order.parts],
            "ranks": [self._share.world_size, self._share.accumulation],
            **self._identity(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position; iterate anew afterwards.

        Raises:
            DataError: another corpus or another kind of state.
            ConfigError: a setting has changed without which the position means nothing.
        """
        self.close()
        address = self.corpora[0].storage.address
        identity = self._identity()
        if not state.keys() >= self.state_dict().keys():
            raise DataError(f"{address}: the checkpoint's data position is of another version")
        for name, value in identity.items():
            if state[name] != value:
                _refuse_change(address, name, state[name], value)
        ranks = [self._share.world_size, self._share.accumulation]
        if state["micro"] and state["ranks"] != ranks:
            raise ConfigError(
                f"the checkpoint's data position is inside a global batch of {state['ranks'][0]} "
                f"workers x {state['ranks'][1]} accumulated batches: go on with those"
            )
        if self._data.lanes and self._data.lanes != sum(state["lanes"]):
            _refuse_change(address, "data.lanes", sum(state["lanes"]), self._data.lanes)
        self._order = self._plan(state["lanes"])
        self._step, self._micro = int(state["step"]), int(state["micro"])

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a position to mean the same samples."""
        return {
            "corpora": [corpus.manifest.facts.plan_hash for corpus in self.corpora],
            "engine.global_batch": self._share.global_batch,
            "run.seed": self._seed,
            "data.tail": self._data.tail,
            "data.shuffle_buffer_shards": self._data.shuffle_buffer_shards,
            "data.mixture_weights": list(self._data.mixture_weights),
        }


def _refuse_change(address: str, name: str, old: Any, new: Any) -> None:
    if name == "corpora":
        raise DataError(
            f"{address}: is not the corpus that the run was started with: set data.train and "
            "data.mixture back, or start a new run"
        )
    raise ConfigError(
        f"{name}={new}: the run was started with {old}, without which its position in the data "
        "means nothing: set it back, or start a new run"
    )


def _weights(data: DataConfig, num_corpora: int) -> tuple[float, ...]:
    """A weight for each part of the order; one part where corpora are simply joined."""
    weights = data.mixture_weights
    if num_corpora == 1 or not weights:
        return (1.0,)
    if len(weights) != num_corpora:
        raise ConfigError(
            f"data.mixture_weights has {len(weights)} entries for {num_corpora} corpora "
            "(data.train and those of data.mixture): give one each, or none"
        )
    return weights


def _check_corpus(corpus: Corpus, first: Corpus, data: DataConfig, num_classes: int) -> None:
    facts, address = corpus.manifest.facts, corpus.storage.address
    if facts.num_samples == 0:
        raise DataError(f"{address}: the corpus is empty: shard it again")
    if len(facts.classes) > num_classes:
        raise DataError(
            f"{address}: has {len(facts.classes)} classes, which is more than "
            f"generator.num_classes={num_classes}: raise that to {len(facts.classes)}"
        )
    if corpus is not first and data.captions == "off":
        check_same_classes(first.storage.address, first.manifest.facts, address, facts)


def build_loader(
    config: DataConfig,
    *addresses: str,
    batch_size: int,
    rank: int,
    world_size: int,
    seed: int,
    num_classes: int,
    accumulation: int = 1,
) -> ShardLoader:
    """The loader of a corpus, or of several, by address; reads their manifests.

    Raises:
        DataError: the store or the corpus is not there, is damaged, or does not fit.
        ConfigError: settings that do not fit the corpora.
    """
    return ShardLoader(
        [open_corpus(address, config.endpoint) for address in addresses],
        config,
        share=Share(batch_size, rank, world_size, accumulation),
        seed=seed,
        num_classes=num_classes,
    )
