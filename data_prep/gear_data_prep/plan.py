"""Which image goes into which shard, decided before any work and from the listing alone."""

import hashlib
import json
from typing import Any, NamedTuple

import numpy as np

from gear_data_prep.sources import SourceImage

PLAN_VERSION = 1
_TAR_BYTES_PER_MEMBER = 1024


class PlanSettings(NamedTuple):
    """What decides the shards besides the source's listing."""

    shard_samples: int = 1000
    """Most samples of a shard."""
    shard_bytes: int = 256 << 20
    """Most bytes of a shard's members (a single larger sample makes a shard of its own)."""
    seed: int = 0
    """Seed of the order."""
    max_pixels: int = 64_000_000
    """Images with more pixels are quarantined."""


class PlannedShard(NamedTuple):
    """One shard's images in their order; the first has the key `first`."""

    shard: int
    first: int
    images: tuple[SourceImage, ...]

    @property
    def name(self) -> str:
        """The tar's file name."""
        return f"{self.shard:06d}.tar"


class Plan(NamedTuple):
    """A corpus before it is made."""

    plan_hash: str
    shards: tuple[PlannedShard, ...]

    @property
    def num_images(self) -> int:
        """Images of all shards, bad ones included."""
        return sum(len(shard.images) for shard in self.shards)


def make_plan(
    images: tuple[SourceImage, ...], classes: tuple[str, ...], settings: PlanSettings
) -> Plan:
    """A seeded permutation of all images, cut into shards: every shard mixes the classes.

    The hash covers the names, sizes and classes of the images and sidecars, and the settings:
    equal hashes mean equal shards as long as files do not change without changing size.
    """
    order = np.random.Generator(np.random.Philox(key=settings.seed)).permutation(len(images))
    shards: list[PlannedShard] = []
    current: list[SourceImage] = []
    room = settings.shard_bytes
    for number, image in enumerate(images[i] for i in order):
        cost = _cost(image)
        if current and (len(current) == settings.shard_samples or cost > room):
            shards.append(PlannedShard(len(shards), number - len(current), tuple(current)))
            current, room = [], settings.shard_bytes
        current.append(image)
        room -= cost
    shards.append(PlannedShard(len(shards), len(images) - len(current), tuple(current)))
    return Plan(_hash(images, classes, settings), tuple(shards))


def _cost(image: SourceImage) -> int:
    """Bytes of the sample's members, headers and padding included (at most)."""
    members = 2 + sum(size >= 0 for size in image.sizes[1:])
    return sum(size for size in image.sizes if size > 0) + members * _TAR_BYTES_PER_MEMBER


def _hash(images: tuple[SourceImage, ...], classes: tuple[str, ...], settings: PlanSettings) -> str:
    head: dict[str, Any] = {
        "version": PLAN_VERSION,
        "classes": classes,
        "settings": settings._asdict(),
    }
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for image in images:
        line = f"{image.class_index} {image.sizes} {image.path}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()
