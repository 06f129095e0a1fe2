"""Batches of crops from a sharded corpus, with an exact position.

What a rank yields is a function of (seed, epoch, batch, world size) alone; see order.py for the
order. Crop and flip are keyed by (seed, epoch, sample), so they do not depend on the rank either.
"""

import struct
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
import xxhash

from gear_dist.config import DataConfig
from gear_dist.data.images import BadImageError, crop, decode_image, resize_short_side
from gear_dist.data.manifest import Manifest, load_manifest
from gear_dist.data.order import Share, Window, epoch_windows, sequential_windows
from gear_dist.data.read_ahead import ReadAhead
from gear_dist.data.shard_reader import Sample, read_shard
from gear_dist.errors import DataError
from gear_dist.storage import Storage, open_storage

KEEP_BYTES = 256 << 20
"""A corpus up to this size is kept in memory after its first epoch."""
_FETCH_THREADS = 2


class Batch(NamedTuple):
    """Images with their labels, on the CPU."""

    images: torch.Tensor
    """(B, 3, H, W) uint8."""
    labels: torch.Tensor
    """(B,) int64."""
    keys: tuple[str, ...]


class _Item(NamedTuple):
    """A sample on its way into a batch."""

    epoch: int
    shard: int
    row: int
    sample: Sample


class ShardLoader:
    """Endless training batches, and finite validation batches, of one rank."""

    def __init__(
        self,
        storage: Storage,
        manifest: Manifest,
        *,
        image_size: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        flip: float = 0.5,
        max_pixels: int = 64_000_000,
        shuffle_buffer_shards: int = 8,
        prefetch_batches: int = 4,
        num_classes: int,
        decode_threads: int = 1,
    ) -> None:
        """Nothing is read yet.

        Args:
            storage: where the corpus is.
            manifest: what it holds.
            image_size: side of the square crops, pixels.
            batch_size: images of a batch of this rank.
            rank: this rank.
            world_size: number of ranks.
            seed: seed of order, crops and flips.
            flip: probability of a horizontal flip.
            max_pixels: larger images are refused before decoding.
            shuffle_buffer_shards: shards whose samples are mixed; a rank holds its own samples
                of twice as many.
            prefetch_batches: batches that the thread works ahead.
            num_classes: labels must be below.
            decode_threads: threads that decode a batch; the result does not depend on it.

        Raises:
            DataError: an empty corpus, or one with more classes than `num_classes`.
        """
        facts = manifest.facts
        if facts.num_samples == 0:
            raise DataError(f"{storage.address}: the corpus is empty: shard it again")
        if len(facts.classes) > num_classes:
            raise DataError(
                f"{storage.address}: has {len(facts.classes)} classes, which is more than "
                f"generator.num_classes={num_classes}: raise that to {len(facts.classes)}"
            )
        self.storage = storage
        self.manifest = manifest
        self._share = Share(batch_size, rank, world_size)
        self._counts = np.array([shard.samples for shard in manifest.shards], np.int64)
        self._starts = np.cumsum(self._counts) - self._counts
        self._image_size = image_size
        self._seed = seed
        self._flip = flip
        self._max_pixels = max_pixels
        self._window_shards = shuffle_buffer_shards
        self._prefetch_batches = prefetch_batches
        self._num_classes = num_classes
        self._decode_threads = decode_threads
        self._keeps = sum(shard.bytes for shard in manifest.shards) <= KEEP_BYTES
        self._kept: dict[int, list[Sample]] = {}
        self._epoch, self._batch = 0, 0
        self._reader: ReadAhead[Batch] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Batches of each rank in an epoch; the global tail is dropped."""
        return self.manifest.facts.num_samples // self._share.global_batch

    def check_global_batch(self) -> None:
        """Raise DataError where the corpus does not fill one batch of all ranks."""
        if self.batches_per_epoch == 0:
            share = self._share
            raise DataError(
                f"{self.storage.address}: has {self.manifest.facts.num_samples} images, fewer "
                f"than one batch of all workers ({share.world_size} x {share.batch_size}): lower "
                f"engine.global_batch to at most that, or add images"
            )

    def __iter__(self) -> Iterator[Batch]:
        """Batches without end, from the current position; a former iteration is closed.

        Raises:
            DataError: as `check_global_batch`; while iterating: a missing or corrupt shard, an
                image that does not decode, a label out of range.
        """
        self.check_global_batch()
        self.close()
        self._reader = ReadAhead(
            self._batches(self._windows(self._epoch, self._batch), augment=True),
            self._prefetch_batches,
        )
        return self._consume(self._reader)

    def validation_batches(self, limit: int = 0) -> Iterator[Batch]:
        """The first `limit` images over all ranks (0: all) once: centre crops, manifest order.

        Nothing is dropped, so the last batches may be smaller and a rank may get one batch more
        than another; both are equal where `limit` is a multiple of the global batch. The training
        position does not move.
        """
        total = self.manifest.facts.num_samples
        limit = min(limit, total) if limit else total
        windows = sequential_windows(self._counts, self._share, limit)
        yield from self._batches(windows, augment=False)

    def state_dict(self) -> dict[str, int]:
        """The position of the next batch to be yielded, whatever has been read ahead."""
        return {"epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a position; iterate anew afterwards."""
        self.close()
        epoch, batch = int(state["epoch"]), int(state["batch"])
        if epoch < 0 or not 0 <= batch <= self.batches_per_epoch:
            raise DataError(
                f"{self.storage.address}: position {state} is beyond an epoch of "
                f"{self.batches_per_epoch} batches: was the run started with other data?"
            )
        at_end = batch > 0 and batch == self.batches_per_epoch
        self._epoch, self._batch = (epoch + 1, 0) if at_end else (epoch, batch)

    def close(self) -> None:
        """Stop reading ahead; iterating again starts at the current position."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _consume(self, reader: ReadAhead[Batch]) -> Iterator[Batch]:
        try:
            for batch in reader:
                self._batch += 1
                if self._batch >= self.batches_per_epoch:
                    self._epoch, self._batch = self._epoch + 1, 0
                yield batch
        finally:
            reader.close()

    def _windows(self, epoch: int, first_batch: int) -> Iterator[Window]:
        while True:
            yield from epoch_windows(
                self._counts,
                self._share,
                seed=self._seed,
                epoch=epoch,
                window_shards=self._window_shards,
                first_batch=first_batch,
            )
            epoch, first_batch = epoch + 1, 0

    def _batches(self, windows: Iterator[Window], augment: bool) -> Generator[Batch, None, None]:
        pool = ThreadPoolExecutor(_FETCH_THREADS, "gear-fetch")
        decoders = ThreadPoolExecutor(self._decode_threads, "gear-decode")
        try:
            pending: list[_Item] = []
            for item in self._items(windows, pool):
                pending.append(item)
                if len(pending) == self._share.batch_size:
                    yield self._collate(pending, augment, decoders)
                    pending = []
            if pending:
                yield self._collate(pending, augment, decoders)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            decoders.shutdown(wait=True, cancel_futures=True)

    def _items(self, windows: Iterator[Window], pool: ThreadPoolExecutor) -> Iterator[_Item]:
        """Samples in order; the next window is fetched while this one is used."""
        ahead: deque[tuple[Window, dict[int, Future[dict[int, Sample]]]]] = deque()
        while True:
            while len(ahead) < 2 and (window := next(windows, None)) is not None:
                ahead.append((window, self._submit(window, pool)))
            if not ahead:
                return
            window, futures = ahead.popleft()
            samples = {shard: future.result() for shard, future in futures.items()}
            for shard, row in zip(window.shards.tolist(), window.rows.tolist(), strict=True):
                yield _Item(window.epoch, shard, row, samples[shard][row])

    def _submit(
        self, window: Window, pool: ThreadPoolExecutor
    ) -> dict[int, Future[dict[int, Sample]]]:
        wanted: dict[int, list[int]] = {}
        for shard, row in zip(window.shards.tolist(), window.rows.tolist(), strict=True):
            wanted.setdefault(shard, []).append(row)
        return {shard: pool.submit(self._fetch, shard, rows) for shard, rows in wanted.items()}

    def _fetch(self, shard: int, rows: list[int]) -> dict[int, Sample]:
        """This rank's samples of a shard; the rest of its bytes is not held."""
        samples = self._kept.get(shard)
        if samples is None:
            samples = read_shard(self.storage, self.manifest.shards[shard])
            if self._keeps:
                self._kept[shard] = samples
        return {row: samples[row] for row in rows}

    def _collate(self, items: list[_Item], augment: bool, decoders: ThreadPoolExecutor) -> Batch:
        size = self._image_size
        pixels = np.empty((len(items), size, size, 3), np.uint8)

        def decode(numbers: range) -> None:
            for number in numbers:
                pixels[number] = self._crop(items[number], augment)

        threads = self._decode_threads
        parts = [range(start, len(items), threads) for start in range(threads)]
        for _ in decoders.map(decode, parts) if threads > 1 else map(decode, parts):
            pass
        labels = [self._label(item) for item in items]
        return Batch(
            torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(labels, dtype=torch.int64),
            tuple(item.sample.key for item in items),
        )

    def _crop(self, item: _Item, augment: bool) -> np.ndarray:
        try:
            image = decode_image(item.sample.image, self._max_pixels)
        except BadImageError as error:
            raise DataError(f"{self._name(item)}: {error}; remove it and shard again") from None
        image = resize_short_side(image, self._image_size)
        if not augment:
            return np.asarray(crop(image, self._image_size))
        ordinal = int(self._starts[item.shard]) + item.row
        digest = xxhash.xxh3_128_digest(struct.pack("<QQQ", self._seed, item.epoch, ordinal))
        left, top, flip, _ = (word / 2**32 for word in struct.unpack("<4I", digest))
        done = crop(image, self._image_size, left=left, top=top, flip=flip < self._flip)
        return np.asarray(done)

    def _label(self, item: _Item) -> int:
        label = item.sample.class_index
        if not 0 <= label < self._num_classes:
            raise DataError(
                f"{self._name(item)}: class {label} is out of range for "
                f"generator.num_classes={self._num_classes}"
            )
        return label

    def _name(self, item: _Item) -> str:
        shard = self.manifest.shards[item.shard]
        return f"{self.storage.address}/{shard.key}: sample {item.sample.key}"


def build_loader(
    config: DataConfig,
    address: str,
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    seed: int,
    num_classes: int,
) -> ShardLoader:
    """The loader of a corpus by its address; reads its manifest.

    Raises:
        DataError: the store or the corpus is not there, is damaged, or does not fit.
    """
    storage = open_storage(address, config.endpoint)
    return ShardLoader(
        storage,
        load_manifest(storage),
        image_size=config.image_size,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        seed=seed,
        flip=config.flip,
        max_pixels=config.max_pixels,
        shuffle_buffer_shards=config.shuffle_buffer_shards,
        prefetch_batches=config.prefetch_batches,
        num_classes=num_classes,
        decode_threads=config.decode_threads,
    )
