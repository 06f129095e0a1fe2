"""Batches of crops from sharded corpora, with an exact position.

What a rank yields is a function of seed, step, lanes and its place among the ranks; see order.py
for the order. Crop, flip, caption, and which label or caption is dropped are keyed by (seed, epoch,
sample), so they do not depend on the rank either.
"""

import warnings
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np

from gear_dist.config.data import CaptionTypes, DataConfig
from gear_dist.data.bad_samples import BadSamples
from gear_dist.data.batch_reader import BatchReader
from gear_dist.data.batches import Batch, BatchMaker
from gear_dist.data.corpus import Corpus, check_same_classes, open_corpus
from gear_dist.data.corpus_summary import check_contents
from gear_dist.data.fetching import FetchSettings, ShardFetcher
from gear_dist.data.first_samples import read_first_samples
from gear_dist.data.lane_reader import LaneReader
from gear_dist.data.order import sequential_windows
from gear_dist.data.plan import DataPlan, DataRank, Position
from gear_dist.data.read_ahead import ReadAhead
from gear_dist.data.selection import Selection, find_unmatched, select_samples
from gear_dist.data.shard_cache import ShardCache
from gear_dist.errors import DataError
from gear_dist.storage.paths import local_path


class ShardLoader:
    """Endless training batches, and finite validation batches, of one rank."""

    def __init__(
        self,
        corpora: Sequence[Corpus],
        data: DataConfig,
        *,
        data_rank: DataRank,
        seed: int = 0,
        num_classes: int | None,
        pin_memory: bool = False,
    ) -> None:
        """Nothing is read yet.

        Args:
            corpora: the corpus, or several to be mixed.
            data: settings; the addresses in it are not used.
            data_rank: this rank, the world size and the batch sizes.
            seed: seed of order, crops, flips and choice of captions.
            num_classes: labels must be below; None: any label, or none, will do.
            pin_memory: batches in page-locked memory, for a GPU.

        Raises:
            DataError: an empty corpus, one without the classes or captions that are needed or with
                more classes than `num_classes`, corpora whose classes differ.
            ConfigError: weights or lanes that do not fit.
        """
        self.corpora = tuple(corpora)
        self._data = data
        self._data_rank = data_rank
        self._selection = select_samples(corpora, data)
        for number in range(len(corpora)):
            for line in _check_corpus(corpora, number, self._selection, data, num_classes):
                self._warn(line)
        for line in find_unmatched([corpus.manifest.info for corpus in corpora], data):
            self._warn(line)
        self._seed = seed
        self._plan = DataPlan(corpora, data, data_rank, seed, self._selection)
        self._num_classes = num_classes
        self._pin_memory = pin_memory
        self._position = Position(0, 0)
        self._reader: ReadAhead[Batch] | None = None
        self.bad_samples = self._new_count(int(self._plan.counts.sum()) // data_rank.world_size)

    def _warn(self, line: str) -> None:
        if self._data_rank.rank == 0:
            warnings.warn(line, stacklevel=3)

    @property
    def batches_per_epoch(self) -> int:
        """Batches of each rank in an epoch (of the first corpus of a weighted mixture)."""
        return self._plan.order.epoch_counts[0].steps * self._data_rank.accumulation

    def describe(self) -> dict[str, Any]:
        """What is read and in which order, for the record of a run."""
        return self._plan.describe()

    # -- batches ----------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Batch]:
        """Batches without end, from the current position; a former iteration is closed.

        Raises:
            DataError: a corpus that does not fill a global batch; while iterating: a missing or
                corrupt shard, too many bad samples, a label out of range.
        """
        self._plan.check_global_batch()
        self.close()
        self._reader = ReadAhead(self._training_batches(), self._data.prefetch_batches)
        return self._consume(self._reader)

    def validation_batches(self, limit: int = 0) -> Iterator[Batch]:
        """The first `limit` images over all ranks (0: all) once: centre crops, manifest order.

        Nothing is dropped, so the last batches may be smaller and a rank may get one batch more
        than another; both are equal where `limit` is a multiple of the global batch. The training
        position does not move.
        """
        data_rank, counts = self._data_rank, self._plan.counts
        total = int(counts.sum())
        limit = min(limit, total) if limit else total
        windows = sequential_windows(
            counts, data_rank.batch_size, data_rank.rank, data_rank.world_size, limit
        )
        fetcher = self._new_fetcher()
        taken = self._selection.original_rows(windows)
        lane = LaneReader(taken, data_rank.batch_size, fetcher)
        item_batches = BatchReader([[lane]], fetcher, self._data.shard_memory_bytes).item_batches(
            {}
        )
        try:
            yield from self._maker(fetcher).batches(
                item_batches, self._new_count(limit), augment=False
            )
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
                step, micro = self._position
                last = micro + 1 == self._data_rank.accumulation
                self._position = Position(step + 1, 0) if last else Position(step, micro + 1)
                yield batch
        finally:
            reader.close()

    def _training_batches(self) -> Generator[Batch, None, None]:
        fetcher = self._new_fetcher()
        reader = self._batch_reader(self._position, fetcher)
        try:
            prefetched = read_first_samples(self.corpora, reader.peek(), fetcher.is_near)
            item_batches = reader.item_batches(prefetched)
            yield from self._maker(fetcher).batches(item_batches, self.bad_samples, augment=True)
        finally:
            fetcher.close()

    def _batch_reader(self, position: Position, fetcher: ShardFetcher) -> BatchReader:
        """This rank's samples from a position on.

        The batches that it accumulates are those of as many ranks that stand side by side.
        """
        data_rank, order, turns = self._data_rank, self._plan.order, []
        for turn in range(position.micro, position.micro + data_rank.accumulation):
            later, micro = divmod(turn, data_rank.accumulation)
            place = data_rank.rank * data_rank.accumulation + micro
            step = position.step + later
            lanes = [
                LaneReader(
                    self._selection.original_rows(order.windows(lane_slice, step)),
                    lane_slice.stop - lane_slice.start,
                    fetcher,
                )
                for lane_slice in order.lane_slices(
                    place, data_rank.world_size * data_rank.accumulation
                )
            ]
            turns.append(lanes)
        return BatchReader(turns, fetcher, self._data.shard_memory_bytes)

    def _new_fetcher(self) -> ShardFetcher:
        data = self._data
        folder = local_path(data.cache_folder) if data.cache_folder else None
        cache = ShardCache(folder, data.cache_bytes) if folder else None
        return ShardFetcher(self.corpora, FetchSettings(data.read_attempts, cache, self._plan.keep))

    def _maker(self, fetcher: ShardFetcher) -> BatchMaker:
        return BatchMaker(
            self._data,
            seed=self._seed,
            num_classes=self._num_classes,
            first_samples=np.cumsum(self._selection.all_counts) - self._selection.all_counts,
            taken_rows=self._selection.rows,
            caption_types=self._caption_types,
            shard_name=fetcher.name,
            pin_memory=self._pin_memory,
        )

    def _caption_types(self, shard: int) -> CaptionTypes:
        """Of the corpus that a shard belongs to."""
        sizes = [len(corpus.manifest.shards) for corpus in self.corpora]
        number = int(np.searchsorted(np.cumsum(sizes), shard, side="right"))
        return self._data.captions_of(number, len(sizes))

    def _new_count(self, samples: int) -> BadSamples:
        return BadSamples(int(self._data.max_bad_share * samples))

    # -- position ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The position of the next batch to be yielded, whatever has been read ahead."""
        return self._plan.state_dict(self._position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position; iterate again afterwards. Raises as `DataPlan.load_state_dict`."""
        self.close()
        self._position = self._plan.load_state_dict(state)


def _check_corpus(
    corpora: Sequence[Corpus],
    number: int,
    selection: Selection,
    data: DataConfig,
    num_classes: int | None,
) -> list[str]:
    """Raises where a corpus does not fit; returns warnings."""
    corpus, first = corpora[number], corpora[0]
    info, address = corpus.manifest.info, corpus.storage.address
    if info.num_samples == 0:
        raise DataError(f"{address}: the corpus is empty: shard it again")
    if corpus is not first and data.captions == "off" and num_classes is not None:
        check_same_classes(
            first.storage.address, first.manifest.info.classes, address, info.classes
        )
    return check_contents(address, selection.contents(number), data, num_classes)


def build_loader(
    config: DataConfig,
    *addresses: str,
    batch_size: int,
    rank: int,
    world_size: int,
    seed: int,
    num_classes: int | None,
    accumulation: int = 1,
    pin_memory: bool = False,
) -> ShardLoader:
    """The loader of a corpus, or of several, by address; reads their manifests.

    Raises:
        DataError: the store or the corpus is not there, is damaged, or does not fit.
        ConfigError: settings that do not fit the corpora.
    """
    return ShardLoader(
        [open_corpus(address, config.endpoint) for address in addresses],
        config,
        data_rank=DataRank(batch_size, rank, world_size, accumulation),
        seed=seed,
        num_classes=num_classes,
        pin_memory=pin_memory,
    )
