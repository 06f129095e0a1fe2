"""Assigns source units to shards up front, from the listing alone.

Two levels: units (an image of a folder; a run of neighbouring samples of a tar or a parquet file)
are shuffled over the whole source and dealt to shards; the samples of a shard's units are
shuffled within it.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gear_data_prep.images.checks import ImageSettings
from gear_data_prep.images.resize import ResizeSettings
from gear_data_prep.sources.base import Listing
from gear_dist.data.sample_filters import SampleFilters

PLAN_VERSION = 4


class PlanSettings(NamedTuple):
    """What decides the shards besides the source's listing."""

    shard_samples: int = 1000
    """Most samples of a shard."""
    shard_bytes: int = 256 << 20
    """Most bytes of a shard's members (a single larger unit makes a shard of its own)."""
    seed: int = 0
    """Seed of the order."""
    image: ImageSettings = ImageSettings()
    resize: ResizeSettings = ResizeSettings()
    origins: bool = False
    """Whether types of captions, licence and attribution go into the shards; see SourceOptions."""
    filters: SampleFilters = SampleFilters()
    """Which samples go in."""

    def dump(self) -> dict[str, Any]:
        """As JSON. What earlier versions did not know is told only where it is used, so that the
        hashes of their plans stay."""
        node = {**self._asdict(), "image": self.image._asdict(), "resize": self.resize._asdict()}
        node["filters"] = self.filters._asdict()
        if self.filters == SampleFilters():
            del node["filters"]
        if not self.origins:
            del node["origins"]
        return node

    @classmethod
    def load(cls, node: dict[str, Any]) -> "PlanSettings":
        """The settings of `dump`; KeyError or TypeError where they are damaged."""
        image, resize = ImageSettings(**node["image"]), ResizeSettings(**node["resize"])
        # A corpus of an earlier version knows fewer kinds.
        image = image._replace(policies={**ImageSettings().policies, **image.policies})
        filters = SampleFilters._make(
            tuple(value) if isinstance(value, list) else value
            for value in {**SampleFilters()._asdict(), **node.get("filters", {})}.values()
        )
        known = {"image": image, "resize": resize, "filters": filters}
        return cls(**{**node, **known})


class PlannedShard(NamedTuple):
    """One shard: its units in their order; its first sample has the key `first`."""

    shard: int
    first: int
    units: np.ndarray
    """int64: indices into the listing."""
    num_samples: int

    @property
    def name(self) -> str:
        """The tar's file name."""
        return f"{self.shard:06d}.tar"


class Taken(NamedTuple):
    """A unit as a shard task reads it."""

    unit: Any
    dropped: tuple[int, ...]
    """Samples of the unit that the plan leaves out."""


class ShardPlan(NamedTuple):
    """A corpus before it is made."""

    plan_hash: str
    shards: tuple[PlannedShard, ...]
    listing: Listing
    dropped: dict[int, tuple[int, ...]]
    """Samples left out, by unit."""

    @property
    def num_samples(self) -> int:
        """Samples of all shards, bad ones included."""
        return sum(shard.num_samples for shard in self.shards)

    def taken(self, shard: PlannedShard) -> tuple[Taken, ...]:
        """What the task of a shard reads."""
        return tuple(
            Taken(self.listing.units[int(unit)], self.dropped.get(int(unit), ()))
            for unit in shard.units
        )


def plan_shards(
    listing: Listing,
    classes: tuple[str, ...],
    settings: PlanSettings,
    dropped: dict[int, tuple[int, ...]] | None = None,
) -> ShardPlan:
    """A seeded permutation of all units, cut into shards.

    The hash covers the names, sizes and classes of the units, what is dropped, and the settings:
    equal hashes mean equal shards as long as files do not change without changing size.
    """
    dropped = dropped or {}
    counts = listing.counts.copy()
    for unit, samples in dropped.items():
        counts[unit] -= len(samples)
    shards = tuple(_deal(counts, listing.costs, settings))
    return ShardPlan(hash_plan(listing, classes, settings, dropped), shards, listing, dropped)


def _deal(counts: np.ndarray, costs: np.ndarray, settings: PlanSettings) -> Iterator[PlannedShard]:
    order = np.random.Generator(np.random.Philox(key=settings.seed)).permutation(len(counts))
    number, first, begin = 0, 0, 0
    samples, room = 0, settings.shard_bytes
    pairs = zip(counts[order].tolist(), costs[order].tolist(), strict=True)
    for position, (count, cost) in enumerate(pairs):
        if samples and (samples + count > settings.shard_samples or cost > room):
            yield PlannedShard(number, first, order[begin:position], samples)
            number, first, begin = number + 1, first + samples, position
            samples, room = 0, settings.shard_bytes
        samples += count
        room -= cost
    yield PlannedShard(number, first, order[begin:], samples)


def shuffled(count: int, seed: int, shard: int) -> list[int]:
    """The order of a shard's samples."""
    generator = np.random.Generator(np.random.Philox(key=[seed, shard + 1]))
    return generator.permutation(count).tolist()


def hash_plan(
    listing: Listing,
    classes: tuple[str, ...],
    settings: PlanSettings,
    dropped: dict[int, tuple[int, ...]],
) -> str:
    """The plan's hash, without the plan: nothing is shuffled for it."""
    node = {
        "version": PLAN_VERSION,
        "classes": classes,
        "settings": settings.dump(),
        "listing": listing.digest,
        "dropped": sorted(dropped.items()),
    }
    return hashlib.sha256(json.dumps(node, sort_keys=True).encode()).hexdigest()
