"""The source interface: a cheap listing for the planner, a small reader for the shard tasks.

A source lists itself once, as units: the least that is worth one read. A unit of a folder is one
image; of a tar or a parquet file, remote ones above all, it is a run of neighbouring samples, so
that no sample costs a request of its own. The planner shuffles units; a shard task reads its
units through the reader and shuffles the samples within the shard.
"""

import hashlib
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from gear_data_prep.samples import BadSample, RawSample


class Unit(Protocol):
    """Neighbouring samples that are read together; small, and pickled to the task."""

    @property
    def num_samples(self) -> int:
        """Samples in it."""
        ...

    @property
    def cost_bytes(self) -> int:
        """At most what its samples take up in a shard, headers included."""
        ...

    @property
    def identity(self) -> str:
        """Name and size: what the plan's hash and the split know of it."""
        ...


class Reader(Protocol):
    """Reads units; pickled to the task, so it holds addresses and options only."""

    @property
    def remote(self) -> bool:
        """Whether reads wait for a network, so that several at a time are faster."""
        ...

    def read(self, unit: Any) -> list[RawSample]:
        """The unit's samples in their order, as many as it says.

        Raises:
            DataError: the source is not what the listing saw.
        """
        ...


class Listing(NamedTuple):
    """The units of one split."""

    units: Sequence[Any]
    counts: np.ndarray
    """int64 (U,): samples of each."""
    costs: np.ndarray
    """int64 (U,): bytes of each in a shard, at most."""
    digest: str
    """Hex SHA-256 of all identities in order."""

    @property
    def num_samples(self) -> int:
        """Samples of all units."""
        return int(self.counts.sum())


class Source(NamedTuple):
    """What can be sharded."""

    address: str
    reader: Reader
    classes: tuple[str, ...]
    """Names by class index; empty: there are no classes, or they have no names."""
    splits: dict[str, Listing]
    """`train`, and `validation` where there is one."""
    damaged: tuple[BadSample, ...] = ()
    """What the listing could not read: parts of broken tars."""
    notes: tuple[str, ...] = ()
    """What else is left out, and what may not be meant, for people."""
    missing: Mapping[str, int] = {}
    """Samples that the source never got, by reason: they count towards --max-bad-share."""
    untold: tuple[str, ...] = ()
    """Settings of filters that would leave nothing: no column of the source says what they ask."""

    @property
    def num_samples(self) -> int:
        """Samples of all splits, missing ones included."""
        return sum(listing.num_samples for listing in self.splits.values())


class Subset(Sequence[Any]):
    """Some units of a sequence, none of them copied."""

    def __init__(self, units: Sequence[Any], indices: np.ndarray) -> None:
        self._units, self._indices = units, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:
        return self._units[int(self._indices[index])]


def list_units(units: Sequence[Any]) -> Listing:
    """The listing of units in their order."""
    digest = hashlib.sha256()
    counts, costs = np.zeros(len(units), np.int64), np.zeros(len(units), np.int64)
    for number, unit in enumerate(units):
        counts[number], costs[number] = unit.num_samples, unit.cost_bytes
        digest.update(unit.identity.encode(errors="surrogateescape") + b"\n")
    return Listing(units, counts, costs, digest.hexdigest())


def make_splits(
    units: Mapping[str, Sequence[Any]],
    validation_share: float,
    name_of: Callable[[Any], str] = operator.attrgetter("identity"),
) -> dict[str, Listing]:
    """Listings by split; where there is no validation, a share of train's units becomes it.

    The side of a unit depends on its name alone, not on which others are there. With a share
    above 0 and two units at least neither side is empty.

    Args:
        units: by split.
        validation_share: of train, where there is no validation.
        name_of: what of a unit stays when the unit is corrected.
    """
    train = units["train"]
    if "validation" in units or validation_share == 0 or len(train) < 2:
        return {split: list_units(part) for split, part in units.items() if len(part)}
    ranks = np.array([_hash_share(name_of(unit)) for unit in train])
    held = ranks < validation_share
    held[ranks.argmin()], held[ranks.argmax()] = True, False
    return {
        "train": list_units(Subset(train, np.flatnonzero(~held))),
        "validation": list_units(Subset(train, np.flatnonzero(held))),
    }


def _hash_share(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    data = name.encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") / 2**64
