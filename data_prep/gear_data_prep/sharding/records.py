"""What a finished shard holds, kept beside it until the manifest is whole."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from gear_data_prep.samples import BadSample
from gear_dist.data.manifest import ShardInfo
from gear_dist.data.origins import TYPE_SEPARATOR, OriginRow, most_frequent

PARTS_PREFIX = "manifest/parts/"
ORIGIN_COUNTS = ("license", "split", "caption_types")
"""Columns of the origins table whose values are counted."""


class SampleRow(NamedTuple):
    """A row of the samples table (SAMPLES_SCHEMA)."""

    key: str
    class_index: int
    width: int
    height: int
    bytes: int
    xxh3: str
    shard: int
    offset: int
    num_captions: int
    caption_chars: int


class ShardSummary(NamedTuple):
    """What of a shard adds up over the corpus."""

    info: ShardInfo
    bad: tuple[BadSample, ...]
    skipped: dict[str, int]
    """Samples left out without a report, by kind."""
    attribute_counts: dict[str, int]
    """Samples that have the attribute."""
    attribute_maxima: dict[str, int]
    """Largest value of the attribute."""
    num_classes: int
    """Largest class index plus 1."""
    odd: dict[str, int] = {}  # noqa: RUF012 - never changed
    """Samples that went in though they are odd, by the policies' kind."""
    num_without_class: int = 0
    num_without_caption: int = 0
    num_origins: int = 0
    """Samples that tell an origin or types of captions."""
    origins: dict[str, dict[str, int]] = {}  # noqa: RUF012 - never changed
    """Samples by value of `license`, `split` and `caption_types`; empty: none tells any."""
    examples: dict[str, str] = {}  # noqa: RUF012 - never changed
    """What the first sample had that a filter left out, by the filter's kind."""

    @property
    def num_planned(self) -> int:
        """Samples that the plan gave the shard."""
        return self.info.samples + len(self.bad) + sum(self.skipped.values())


class ShardRecord(NamedTuple):
    """A shard's part of the manifest; published after it, under `record_key`."""

    plan_hash: str
    summary: ShardSummary
    rows: tuple[SampleRow, ...]
    origins: tuple[OriginRow, ...] = ()
    """One for each of `rows`, where any sample tells an origin."""

    def dump(self) -> bytes:
        """JSON bytes, equal for equal records; rows by column."""
        node = {
            "plan_hash": self.plan_hash,
            "summary": self.summary._asdict(),
            "columns": list(zip(*self.rows, strict=True)),
        }
        if self.origins:
            node["origins"] = list(zip(*self.origins, strict=True))
        return json.dumps(node, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def load(cls, data: bytes) -> "ShardRecord":
        """The record of `dump`; ValueError, TypeError or KeyError where it is damaged."""
        node = json.loads(data)
        summary = node["summary"]
        summary["info"] = ShardInfo(*summary["info"])
        summary["bad"] = tuple(BadSample(*row) for row in summary["bad"])
        rows = tuple(SampleRow(*row) for row in zip(*node["columns"], strict=True))
        if len(rows) != summary["info"].samples:
            raise ValueError("a record of another number of samples")
        origins = tuple(OriginRow(*row) for row in zip(*node.get("origins", ()), strict=True))
        return cls(node["plan_hash"], ShardSummary(**summary), rows, origins)


class SummaryBuilder:
    """Counts a shard's samples as they go in."""

    def __init__(self) -> None:
        self.bad: list[BadSample] = []
        self.skipped: Counter[str] = Counter()
        self.odd: Counter[str] = Counter()
        self.num_classes = 0
        self.num_without_class = 0
        self.num_without_caption = 0
        self._counts: Counter[str] = Counter()
        self._maxima: dict[str, int] = {}
        self._origins: dict[str, Counter[str]] = {name: Counter() for name in ORIGIN_COUNTS}
        self.num_origins = 0
        self.examples: dict[str, str] = {}

    def add_origin(self, row: OriginRow) -> None:
        """Count where a sample that went in comes from."""
        self.num_origins += any(row[1:])
        for name, values in (
            ("license", [row.license]),
            ("split", [row.split]),
            ("caption_types", row.caption_types.split(TYPE_SEPARATOR)),
        ):
            self._origins[name].update(value for value in values if value)

    def add(
        self,
        class_index: int,
        num_captions: int,
        attributes: dict[str, int],
        odd: Iterable[str] = (),
    ) -> None:
        """Count a sample that went in, and what is odd about it."""
        self.odd.update(odd)
        self.num_without_class += class_index < 0
        self.num_without_caption += num_captions == 0
        self.num_classes = max(self.num_classes, class_index + 1)
        for name, value in attributes.items():
            self._counts[name] += 1
            self._maxima[name] = max(value, self._maxima.get(name, 0))

    def finish(self, info: ShardInfo) -> ShardSummary:
        """The summary."""
        return ShardSummary(
            info,
            tuple(self.bad),
            dict(sorted(self.skipped.items())),
            dict(self._counts),
            self._maxima,
            self.num_classes,
            dict(sorted(self.odd.items())),
            self.num_without_class,
            self.num_without_caption,
            self.num_origins,
            {name: most_frequent(counts) for name, counts in self._origins.items() if counts},
            self.examples,
        )


def record_key(shard: int) -> str:
    """Where the record of a shard is kept until the manifest is whole."""
    return f"{PARTS_PREFIX}{shard:06d}.json"
