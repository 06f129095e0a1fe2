"""Images that a corpus holds more than once, by the hashes of their bytes in the manifest."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from gear_data_prep.sharding.plan import PlanSettings, ShardPlan, plan_shards, shuffled
from gear_data_prep.sources.base import Source
from gear_dist.data.manifest import iterate_samples, load_manifest
from gear_dist.errors import DataError
from gear_dist.storage.base import Storage

MAX_COMPARED = 5_000_000
"""Of more samples than these, both splits together, only `stats` looks for images in both."""


class Duplicates(NamedTuple):
    """Groups of samples with the same image."""

    groups: list[list[int]]
    """Keys, as numbers, of each group of two or more."""

    @property
    def num_superfluous(self) -> int:
        """Samples beyond the first of each group."""
        return sum(len(group) - 1 for group in self.groups)


def find_duplicates(storage: Storage) -> Duplicates:
    """Duplicates in a finished corpus, about 100 bytes of memory a sample."""
    table = pa.concat_tables(part.select(["key", "xxh3"]) for part in iterate_samples(storage))
    counts = table.group_by("xxh3").aggregate([("key", "count")])
    several = counts.filter(pc.greater(counts["key_count"], 1))["xxh3"]
    found = table.filter(pc.is_in(table["xxh3"], value_set=several.combine_chunks()))
    groups: dict[str, list[int]] = defaultdict(list)
    for row in found.to_pylist():
        groups[row["xxh3"]].append(int(row["key"]))
    return Duplicates(sorted(sorted(group) for group in groups.values()))


def find_shared(storage: Storage, other: Storage) -> list[int]:
    """Keys, as numbers, of the samples whose image another corpus holds too."""
    return [int(key) for part in _shared(storage, other) for key in part["key"].to_pylist()]


def warn_of_shared(train: Storage, validation: Storage) -> str:
    """A warning where train has images of validation, or has too many to say; empty: it has none.

    About 100 bytes of memory a sample of validation, and a part of train's table at a time.

    Raises:
        DataError: a corpus is not finished, or its manifest is damaged.
    """
    total = sum(load_manifest(storage).info.num_samples for storage in (train, validation))
    if total > MAX_COMPARED:
        return (
            f"train was not searched for images of validation: {total:,} images are more than "
            f"{MAX_COMPARED:,}; `gear-dist stats` counts them"
        )
    shared = sum(part.num_rows for part in _shared(train, validation))
    if not shared:
        return ""
    return (
        f"{shared:,} images of train ({train.address}) are in validation ({validation.address}) "
        "too, so that evaluation tells nothing of new images: shard the source again with "
        "--without-duplicates-of CORPUS to a new place, which keeps them in validation only"
    )


def _shared(storage: Storage, other: Storage) -> Iterator[pa.Table]:
    """The rows whose image the other corpus holds too, a part of the table at a time."""
    hashes = [part["xxh3"].combine_chunks() for part in iterate_samples(other)]
    known = pa.chunked_array(hashes, pa.string()).combine_chunks()
    for part in iterate_samples(storage):
        yield part.select(["key"]).filter(pc.is_in(part["xxh3"], value_set=known))


def find_dropped(
    storage: Storage, source: Source, split: str, *, held_out: Storage | None = None
) -> dict[int, tuple[int, ...]]:
    """What a new plan of the same source leaves out, so that every image is there once.

    Of each group the sample that comes first in the source stays.

    Args:
        storage: the corpus that has the duplicates.
        source: its source, as it was.
        split: which split of it the corpus is.
        held_out: a corpus whose images are left out altogether.

    Returns:
        Numbers of samples within their unit, by unit.

    Raises:
        DataError: no corpus there, or one of another source.
    """
    info = load_manifest(storage).info
    settings = PlanSettings.load(info.settings["plan"])
    former = {int(unit): tuple(samples) for unit, samples in info.settings["dropped"]}
    plan = plan_shards(source.splits[split], source.classes, settings, former)
    if plan.plan_hash != info.plan_hash:
        raise DataError(
            f"{storage.address}: is not made from this source as it is now, so its duplicates "
            "cannot be found there: shard the source again first"
        )
    dropped: dict[int, set[int]] = defaultdict(set)
    for unit, samples in former.items():
        dropped[unit] |= set(samples)
    groups = find_duplicates(storage).groups
    shared = find_shared(storage, held_out) if held_out is not None else []
    wanted = {key for group in groups for key in group}.union(shared)
    places = _places(plan, settings.seed, wanted)
    superfluous = [sorted(places[key] for key in group)[1:] for group in groups]
    for unit, sample in [*(places[key] for key in shared), *chain.from_iterable(superfluous)]:
        dropped[unit].add(sample)
    return {unit: tuple(sorted(samples)) for unit, samples in dropped.items()}


def _places(plan: ShardPlan, seed: int, keys: set[int]) -> dict[int, tuple[int, int]]:
    """Unit and number within it of the samples with these keys."""
    found: dict[int, tuple[int, int]] = {}
    order = sorted(keys)
    for planned in plan.shards:
        end = planned.first + planned.num_samples
        wanted = order[bisect_left(order, planned.first) : bisect_left(order, end)]
        if not wanted:
            continue
        places = [
            (int(unit), sample)
            for unit in planned.units
            for sample in range(int(plan.listing.counts[unit]))
            if sample not in plan.dropped.get(int(unit), ())
        ]
        if any(plan.listing.counts[unit] != 1 for unit in planned.units):
            places = [places[i] for i in shuffled(len(places), seed, planned.shard)]
        for key in wanted:
            found[key] = places[key - planned.first]
    return found
