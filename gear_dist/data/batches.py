"""Samples to batches: decode, crop, label, caption; a bad sample is replaced by its neighbour."""

import bisect
import contextlib
import itertools
import os
import re
import struct
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
import xxhash

from gear_dist.config.colour import parse_colour
from gear_dist.config.data import CaptionTypes, DataConfig
from gear_dist.data.bad_samples import BadSamples
from gear_dist.data.captions import usable_captions
from gear_dist.data.crops import CropSettings, Placement, take_crop
from gear_dist.data.images import BadImageError
from gear_dist.data.lane_reader import SampleRef
from gear_dist.data.shard_reader import Shard, TypedCaption, UnreadableSampleError
from gear_dist.errors import DataError
from gear_dist.runs.environment import num_cores

_BATCHES_IN_WORK = 2
_SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)
"""Words such as left, leftmost and right-hand, which a flip would make wrong."""
_FEWEST_THREADS, _MOST_THREADS = 2, 16


class Batch(NamedTuple):
    """Images with what is known of them, on the CPU."""

    images: torch.Tensor
    """(B, 3, H, W) uint8."""
    labels: torch.Tensor
    """(B,) int64; -1: none, only where no class is needed."""
    keys: tuple[str, ...]
    captions: tuple[str, ...]
    """Empty strings where data.captions=off, or where it is dropped."""
    cfg_dropout_rand: torch.Tensor
    """(B,) float32, a random number in [0, 1) of each sample and epoch: a generator's condition
    is dropped where this is below class_dropout. 1 in validation."""


class _Draws(NamedTuple):
    """A sample's random numbers in one epoch, each in [0, 1)."""

    left: float
    top: float
    flip: float
    caption: float
    drop: float


class _Known(NamedTuple):
    """A batch's entries beside the pixels."""

    key: str
    label: int
    caption: str
    drop: float


class _Work(NamedTuple):
    """A batch that threads are decoding."""

    pixels: np.ndarray
    """(B, H, W, 3)."""
    parts: list[Future[list[_Known]]]


class BatchMaker:
    """Makes batches of lists of items; what comes out does not depend on the threads."""

    def __init__(
        self,
        data: DataConfig,
        *,
        seed: int,
        num_classes: int | None,
        first_samples: np.ndarray,
        shard_name: Callable[[int], str],
        taken_rows: Callable[[int], np.ndarray | None],
        caption_types: Callable[[int], CaptionTypes],
        pin_memory: bool = False,
    ) -> None:
        """Nothing is decoded yet.

        Args:
            data: sizes, decoding, flips, captions, threads.
            seed: seed of crops, flips and choice of captions.
            num_classes: labels must be below; None: any label, or none, will do.
            first_samples: (num_shards,) number of each shard's first sample in the corpora.
            shard_name: a shard's address, for messages.
            taken_rows: the rows of a shard that the filters take; None: all.
            caption_types: those that are read of a shard's samples, and how often.
            pin_memory: batches in page-locked memory, from which a copy to a GPU does not wait.
        """
        self._data = data
        self._threads = data.decode_threads or choose_decode_threads()
        self._pin_memory = pin_memory
        self._crops = CropSettings(
            data.image_size, data.max_pixels, data.decoding, parse_colour(data.background)
        )
        self._seed = seed
        self._num_classes = num_classes
        self._first_samples = first_samples
        self._shard_name = shard_name
        self._taken_rows = taken_rows
        self._caption_types = caption_types

    def batches(
        self, item_batches: Iterator[list[SampleRef]], bad: BadSamples, *, augment: bool
    ) -> Generator[Batch, None, None]:
        """A batch for each list of items.

        Args:
            item_batches: the items, each list one batch.
            bad: counts what cannot be used.
            augment: random crops and flips, else centre crops.

        Raises:
            DataError: a label out of range, too many bad samples, a shard of bad samples only.
        """
        if self._threads == 1:
            for items in item_batches:
                pixels = self._room(items)
                yield self._collate(pixels, self._fill(pixels, items, bad, augment))
            return
        pool = ThreadPoolExecutor(self._threads, "gear-decode")
        work: deque[_Work] = deque()
        try:
            at_once = 1  # the first batch does not wait for the items of the second
            for items in item_batches:
                work.append(self._submit(pool, items, bad, augment))
                if len(work) == at_once:
                    yield self._finish(work.popleft())
                    at_once = _BATCHES_IN_WORK
            while work:
                yield self._finish(work.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _room(self, items: list[SampleRef]) -> np.ndarray:
        size = self._data.image_size
        return np.empty((len(items), size, size, 3), np.uint8)

    def _submit(
        self, pool: ThreadPoolExecutor, items: list[SampleRef], bad: BadSamples, augment: bool
    ) -> _Work:
        pixels = self._room(items)
        step = -(-len(items) // self._threads)
        parts = [
            pool.submit(self._fill, pixels[low : low + step], items[low : low + step], bad, augment)
            for low in range(0, len(items), step)
        ]
        return _Work(pixels, parts)

    def _fill(
        self, pixels: np.ndarray, items: list[SampleRef], bad: BadSamples, augment: bool
    ) -> list[_Known]:
        return [
            self._decode(out, item, bad, augment) for out, item in zip(pixels, items, strict=True)
        ]

    def _decode(self, out: np.ndarray, item: SampleRef, bad: BadSamples, augment: bool) -> _Known:
        """Write a sample's crop; of a bad one, that of the next good one in its shard.

        Which one that is depends on the shard alone, so neither rank nor world size matters.
        """
        draws = self._draw(item) if augment else _Draws(0.5, 0.5, 1.0, 0.0, 1.0)
        if item.prefetched is not None:
            # The full shard will report the same problem.
            with contextlib.suppress(BadImageError, UnreadableSampleError):
                return self._read(out, item, item.prefetched, 0, draws)
        shard = item.get_shard()
        for row in self._rows_from(item.number, item.row, len(shard.keys)):
            try:
                return self._read(out, item, shard, row, draws)
            except (BadImageError, UnreadableSampleError) as error:
                message = f"{self._name(item, shard.keys[row])}: {error}"
                bad.record(item.epoch, (item.number, row), message)
        raise DataError(
            f"{self._shard_name(item.number)}: no usable sample in this shard: shard "
            f"the corpus again"
        )

    def _rows_from(self, number: int, first: int, num_rows: int) -> list[int]:
        """The rows of a shard that are taken, from one of them on and around."""
        taken = self._taken_rows(number)
        rows = range(num_rows) if taken is None else taken.tolist()
        start = bisect.bisect_left(rows, first)
        return [*rows[start:], *rows[:start]]

    def _read(
        self, out: np.ndarray, item: SampleRef, shard: Shard, row: int, draws: _Draws
    ) -> _Known:
        """Write the crop of a row of a shard."""
        caption = self._caption(item.number, shard, row, draws)
        kept = "" if draws.drop < self._data.caption_dropout else caption
        label = shard.class_index(row)
        flipped = draws.flip < self._data.flip and self._may_flip(caption)
        left, top = (0.5, 0.5) if self._data.crop == "centre" else (draws.left, draws.top)
        place = Placement(left, top, flipped)
        out[:] = take_crop(shard.image(row), self._crops, place)
        self._check_label(item, shard.keys[row], label)
        return _Known(shard.keys[row], label, kept, draws.drop)

    def _draw(self, item: SampleRef) -> _Draws:
        number = int(self._first_samples[item.number]) + item.row
        digest = xxhash.xxh3_128_digest(struct.pack("<QQQ", self._seed, item.epoch, number))
        drop = (xxhash.xxh3_64_intdigest(digest) >> 40) / 2**24  # which float32 holds exactly
        left, top, flip, caption = (word / 2**32 for word in struct.unpack("<4I", digest))
        return _Draws(left, top, flip, caption, drop)

    def _caption(self, number: int, shard: Shard, row: int, draws: _Draws) -> str:
        if self._data.captions == "off":
            return ""
        types, weights = self._caption_types(number)
        captions = usable_captions(shard, row, types)
        if not captions:
            of_type = f" of the types {', '.join(types)}" if types else ""
            raise UnreadableSampleError(
                f"it has no caption{of_type}, but data.captions={self._data.captions} needs one"
                + (" (see data.caption_types, data.mixture_captions)" if types else "")
            )
        if self._data.captions == "first":
            return captions[0].text
        return _draw_caption(captions, dict(zip(types, weights, strict=False)), draws.caption)

    def _may_flip(self, caption: str) -> bool:
        return self._data.flip_sides or not _SIDES.search(caption)

    def _check_label(self, item: SampleRef, key: str, label: int) -> None:
        if self._num_classes is None:
            return
        unlabelled = label == -1 and self._data.captions != "off"
        if not unlabelled and not 0 <= label < self._num_classes:
            raise DataError(
                f"{self._name(item, key)}: class {label} is out of range for "
                f"generator.num_classes={self._num_classes}"
            )

    def _name(self, item: SampleRef, key: str) -> str:
        return f"{self._shard_name(item.number)}: sample {key}"

    def _finish(self, work: _Work) -> Batch:
        return self._collate(work.pixels, [known for part in work.parts for known in part.result()])

    def _collate(self, pixels: np.ndarray, known: list[_Known]) -> Batch:
        keys, labels, captions, drops = zip(*known, strict=True)
        return Batch(
            self._to_memory(torch.from_numpy(pixels).permute(0, 3, 1, 2)),
            self._to_memory(torch.tensor(labels, dtype=torch.int64)),
            keys,
            captions,
            self._to_memory(torch.tensor(drops, dtype=torch.float32)),
        )

    def _to_memory(self, source: torch.Tensor) -> torch.Tensor:
        """A contiguous copy where the batch is to lie."""
        target = torch.empty(source.shape, dtype=source.dtype, pin_memory=self._pin_memory)
        return target.copy_(source)


def choose_decode_threads() -> int:
    """Threads of a worker that decode: its share of the cores but one, which trains; 2 to 16."""
    workers = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(_MOST_THREADS, max(_FEWEST_THREADS, num_cores() // max(1, workers) - 1))


def _draw_caption(
    captions: Sequence[TypedCaption], weights: Mapping[str, float], draw: float
) -> str:
    """A type by its weight among those that are there, and one of its captions.

    Args:
        captions: at least one.
        weights: by type; none: every caption has the same chance.
        draw: in [0, 1).
    """
    shares = [1.0] * len(captions)
    if weights:
        counts = Counter(caption.kind for caption in captions)
        shares = [weights[caption.kind] / counts[caption.kind] for caption in captions]
    ends = list(itertools.accumulate(shares))
    return captions[min(bisect.bisect_right(ends, draw * ends[-1]), len(captions) - 1)].text
