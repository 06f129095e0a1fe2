"""Loads a labelled corpus, or part of it, as uint8 arrays: for training small classifiers
and for evaluation, which pass over the same images many times."""

import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gear_dist.config.colour import WHITE, Colour
from gear_dist.data.corpus import open_corpus
from gear_dist.data.images import BadImageError, crop, decode_image, resize_short_side
from gear_dist.data.manifest import CorpusManifest, ShardInfo
from gear_dist.data.shard_reader import Sample, UnreadableSampleError, read_shard
from gear_dist.errors import DataError
from gear_dist.storage.base import Storage

UNKNOWN = -1  # class or attribute of a sample that does not record it
_ZOOM = 1.4


class LabelledImages(NamedTuple):
    """Images of one corpus with what is known about each."""

    images: Tensor
    """uint8 (N, 3, H, W)."""
    labels: Tensor
    """int64 (N,) class indices; -1: none."""
    attributes: dict[str, Tensor]
    """int64 (N,) by attribute name, for the attributes that the manifest lists; -1: unknown."""
    num_classes: int
    attribute_sizes: dict[str, int]
    plan_hash: str
    """Identifies the corpus's contents."""
    num_sources: int
    """Different source images; fewer than N where several crops were taken of each."""
    captions: tuple[str, ...] = ()
    """(N,) the first caption of each, empty where it has none."""

    def targets(self) -> dict[str, Tensor]:
        """Labels under "class", and the attributes, each (N,)."""
        return {"class": self.labels, **self.attributes}


class LoadSettings(NamedTuple):
    """How much of a corpus is taken into memory, and how it is cropped."""

    image_size: int
    max_images: int = 50_000
    max_bytes: int = 1 << 30
    """Limit of the uint8 arrays."""
    augment_below: int = 0
    """A corpus with fewer images gives several crops of each, up to 16, towards this number."""
    max_pixels: int = 64_000_000
    """Larger images are refused, as by the training loader."""
    background: Colour = WHITE
    """What shows through transparent pixels."""
    seed: int = 0


def load_labelled(address: str, settings: LoadSettings, *, endpoint: str = "") -> LabelledImages:
    """Read a corpus, or randomly chosen shards of it up to the limits, and decode it.

    Sharding mixes the classes, so that any shards are a fair sample of the corpus.

    Each image is its centre crop after a bicubic resize of the short side to image_size; further
    crops (see `augment_below`) are zoomed by up to 1.4 and placed at random. The result depends
    on the corpus and the settings alone.

    Raises:
        DataError: unreachable or damaged corpus, a broken image, a class out of range, no sample.
    """
    storage, manifest = open_corpus(address, endpoint)
    info = manifest.info
    limit = min(settings.max_images, settings.max_bytes // (3 * settings.image_size**2))
    num_sources = min(limit, info.num_samples)
    if num_sources <= 0:
        raise DataError(f"{address}: no sample to load ({info.num_samples} in the corpus)")
    crops = min(16, max(1, settings.augment_below // num_sources), limit // num_sources)
    size = settings.image_size
    images = np.empty((num_sources, crops, 3, size, size), np.uint8)
    columns = {name: np.full(num_sources, UNKNOWN) for name in ("class", *info.attributes)}
    captions: list[str] = []
    rows = _decoded(storage, manifest, settings, crops)
    for row, (sample, pixels) in zip(range(num_sources), rows, strict=False):
        images[row] = pixels
        captions += [next(iter(sample.captions), "")] * crops
        columns["class"][row] = sample.class_index
        for name in info.attributes:
            columns[name][row] = sample.attributes.get(name, UNKNOWN)
    targets = {name: torch.from_numpy(values.repeat(crops)) for name, values in columns.items()}
    return LabelledImages(
        images=torch.from_numpy(images.reshape(-1, 3, size, size)),
        labels=targets.pop("class"),
        attributes=targets,
        num_classes=len(info.classes),
        attribute_sizes=dict(info.attributes),
        plan_hash=info.plan_hash,
        num_sources=num_sources,
        captions=tuple(captions),
    )


def _decoded(
    storage: Storage, manifest: CorpusManifest, settings: LoadSettings, crops: int
) -> Iterator[tuple[Sample, np.ndarray]]:
    """Samples of the shards in random order, with their crops (crops, 3, H, W)."""
    order = np.random.default_rng(settings.seed).permutation(len(manifest.shards))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for index in order:
            shard = manifest.shards[index]

            def decode(sample: Sample, shard: ShardInfo = shard) -> np.ndarray:
                _check(storage, manifest, shard, sample)
                try:
                    return _crops(sample, settings, crops)
                except BadImageError as error:
                    where = f"{storage.address}/{shard.key}: sample {sample.key}"
                    raise DataError(f"{where}: {error}") from None

            samples = _parse(storage, shard)
            yield from zip(samples, pool.map(decode, samples), strict=True)


def _parse(storage: Storage, info: ShardInfo) -> list[Sample]:
    shard = read_shard(storage, info)
    samples = []
    for row, key in enumerate(shard.keys):
        try:
            samples.append(shard.sample(row))
        except UnreadableSampleError as error:
            raise DataError(f"{storage.address}/{info.key}: sample {key}: {error}") from None
    return samples


def _check(storage: Storage, manifest: CorpusManifest, shard: ShardInfo, sample: Sample) -> None:
    where = f"{storage.address}/{shard.key}: sample {sample.key}"
    num_classes = len(manifest.info.classes)
    if not UNKNOWN <= sample.class_index < max(num_classes, 1):
        raise DataError(
            f"{where}: class {sample.class_index} is out of range: {num_classes} classes"
        )
    for name, num_values in manifest.info.attributes.items():
        value = sample.attributes.get(name, UNKNOWN)
        if not UNKNOWN <= value < num_values:
            raise DataError(f"{where}: {name}={value} is out of range: {num_values} values")


def _crops(sample: Sample, settings: LoadSettings, crops: int) -> np.ndarray:
    image = decode_image(sample.image, settings.max_pixels, settings.background)
    size = settings.image_size
    taken = [crop(resize_short_side(image, size), size)]
    seed = zlib.crc32(f"{settings.seed}/{sample.key}".encode())
    random = np.random.default_rng(seed)
    for _ in range(crops - 1):
        zoom, left, top = random.random(3)
        zoomed = resize_short_side(image, round(size * (1 + (_ZOOM - 1) * zoom)))
        taken.append(crop(zoomed, size, left=left, top=top))
    return np.stack([np.asarray(item) for item in taken]).transpose(0, 3, 1, 2)
