"""Writes the manifest once all shards are finished: tables, quarantine report, dataset.json."""

import importlib.metadata
import json
import re
from collections import Counter
from typing import Any, NamedTuple

import pyarrow as pa
import xxhash

from gear_data_prep.samples import BadSample
from gear_data_prep.sharding.records import (
    ORIGIN_COUNTS,
    PARTS_PREFIX,
    ShardRecord,
    ShardSummary,
    record_key,
)
from gear_dist.data.manifest import (
    DATASET_KEY,
    SAMPLES_SCHEMA,
    SCHEMA_VERSION,
    SHARDS_KEY,
    SHARDS_SCHEMA,
    DatasetInfo,
    ShardInfo,
    dump_info,
    dump_table,
    group_parts,
    samples_key,
)
from gear_dist.data.origins import (
    ORIGINS_SCHEMA,
    SampleOrigin,
    most_frequent,
    origin_row,
    origins_key,
)
from gear_dist.data.sample_filters import SETTINGS
from gear_dist.errors import DataError
from gear_dist.storage.base import Storage

PLAN_KEY = "manifest/plan.json"
QUARANTINE_KEY = "manifest/quarantine.json"


_CORPUS_OBJECT = re.compile(
    r"shards/\d{6,}\.tar|manifest/(plan|dataset|quarantine)\.json|manifest/shards\.parquet"
    r"|manifest/(samples|origins)-\d{5,}\.parquet|manifest/parts/\d{6,}\.json"
)


def is_corpus_object(key: str) -> bool:
    """Whether an object is called like one of a corpus: nothing else is ever removed."""
    return _CORPUS_OBJECT.fullmatch(key) is not None


class Origin(NamedTuple):
    """Where a corpus came from, as recorded in its dataset.json."""

    source: str
    classes: tuple[str, ...]
    settings: dict[str, Any]
    plan_hash: str


class SplitTally:
    """What the shards' summaries add up to; their rows stay in their records."""

    def __init__(self, damaged: tuple[BadSample, ...] = ()) -> None:
        self.infos: dict[int, ShardInfo] = {}
        self.bad: list[BadSample] = list(damaged)
        self.skipped: Counter[str] = Counter()
        self.odd: Counter[str] = Counter()
        self.num_classes = 0
        self.num_without_class = 0
        self.num_without_caption = 0
        self.num_origins = 0
        self._counts: Counter[str] = Counter()
        self._maxima: dict[str, int] = {}
        self.origins: dict[str, Counter[str]] = {name: Counter() for name in ORIGIN_COUNTS}
        self.examples: dict[str, str] = {}

    def add(self, summary: ShardSummary) -> None:
        """Count one shard."""
        self.infos[summary.info.shard] = summary.info
        self.bad += summary.bad
        self.skipped.update(summary.skipped)
        self.odd.update(summary.odd)
        self.num_classes = max(self.num_classes, summary.num_classes)
        self.num_without_class += summary.num_without_class
        self.num_without_caption += summary.num_without_caption
        self.num_origins += summary.num_origins
        self._counts.update(summary.attribute_counts)
        for name, value in summary.attribute_maxima.items():
            self._maxima[name] = max(value, self._maxima.get(name, 0))
        for name, counts in summary.origins.items():
            self.origins[name].update(counts)
        self.examples = {**summary.examples, **self.examples}

    @property
    def num_samples(self) -> int:
        """Good samples."""
        return sum(info.samples for info in self.infos.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(info.bytes for info in self.infos.values())

    def attributes(self) -> dict[str, int]:
        """Number of values of each attribute that every sample has."""
        everywhere = [name for name, count in self._counts.items() if count == self.num_samples]
        return {name: self._maxima[name] + 1 for name in sorted(everywhere)}

    def shards(self) -> list[ShardInfo]:
        """In their order."""
        return [self.infos[shard] for shard in sorted(self.infos)]


def publish(storage: Storage, origin: Origin, tally: SplitTally) -> DatasetInfo:
    """Write the manifest from the shards' records, one part at a time, dataset.json last.

    Raises:
        DataError: there is no usable sample.
        StorageError: the destination refuses a write.
    """
    write_quarantine(storage, tally)
    if tally.num_samples == 0:
        raise DataError(_nothing_usable(storage, origin, tally))
    checksums = {key: _digest(storage.read(key)) for key in (PLAN_KEY, QUARANTINE_KEY)}
    with_origins = tally.num_origins > 0
    shards = pa.Table.from_pylist([info._asdict() for info in tally.shards()], SHARDS_SCHEMA)
    checksums[SHARDS_KEY] = _write(storage, SHARDS_KEY, dump_table(shards))
    for part, group in enumerate(group_parts(tally.shards())):
        key = samples_key(part)
        checksums[key] = _write(storage, key, dump_samples(storage, group))
        if with_origins:
            key = origins_key(part)
            checksums[key] = _write(storage, key, dump_origins(storage, group))
    info = DatasetInfo(
        schema_version=SCHEMA_VERSION,
        num_samples=tally.num_samples,
        num_shards=len(tally.infos),
        classes=_class_names(origin, tally),
        attributes=tally.attributes(),
        source=origin.source,
        settings=origin.settings,
        plan_hash=origin.plan_hash,
        tool_version=importlib.metadata.version("gear-dist"),
        checksums=checksums,
        num_without_class=tally.num_without_class,
        num_without_caption=tally.num_without_caption,
        licenses=most_frequent(tally.origins["license"]),
        subsets=most_frequent(tally.origins["split"]),
        caption_types=most_frequent(tally.origins["caption_types"]),
    )
    storage.write(DATASET_KEY, dump_info(info))
    return info


def _nothing_usable(storage: Storage, origin: Origin, tally: SplitTally) -> str:
    split = origin.settings.get("split", "train")
    kinds = Counter(item.kind for item in tally.bad) + tally.skipped
    reasons = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))
    fix = "fix them: a corpus needs at least one usable image, whatever --max-bad-share allows"
    if split == "validation":
        fix = (
            "every split needs at least one, whatever --max-bad-share allows: fix them, or hold "
            "out more with a "
            "larger --validation-share, or nothing by --validation-share 0, with --overwrite"
        )
    if filtered := [kind for kind in SETTINGS if tally.skipped[kind]]:
        options = ", ".join(f"--{SETTINGS[kind].replace('_', '-')}" for kind in filtered)
        seen = "; ".join(tally.examples[kind] for kind in filtered if kind in tally.examples)
        fix = f"loosen {options}; left out by them, for instance: {seen}"
    report = f"{storage.address}/{QUARANTINE_KEY}"
    return (
        f"{origin.source}: no usable image in {split} ({reasons or 'none at all'}; {report}): {fix}"
    )


def dump_samples(storage: Storage, shards: list[ShardInfo]) -> bytes:
    """Parquet bytes of a part of the samples table, from the shards' records."""
    tables = []
    for info in shards:
        record = ShardRecord.load(storage.read(record_key(info.shard)))
        columns = zip(*record.rows, strict=True) if record.rows else [[]] * len(SAMPLES_SCHEMA)
        tables.append(pa.table([list(column) for column in columns], SAMPLES_SCHEMA))
    return dump_table(pa.concat_tables(tables).combine_chunks())


def dump_origins(storage: Storage, shards: list[ShardInfo]) -> bytes:
    """Parquet bytes of a part of the origins table; samples that tell nothing have empty rows."""
    tables = []
    for info in shards:
        record = ShardRecord.load(storage.read(record_key(info.shard)))
        rows = record.origins or [origin_row(row.key, (), SampleOrigin()) for row in record.rows]
        columns = zip(*rows, strict=True) if rows else [[]] * len(ORIGINS_SCHEMA)
        tables.append(pa.table([list(column) for column in columns], ORIGINS_SCHEMA))
    return dump_table(pa.concat_tables(tables).combine_chunks())


def write_quarantine(storage: Storage, tally: SplitTally) -> None:
    """The report of what was left out, and why, and of what is odd about what went in."""
    rows = [item._asdict() for item in sorted(tally.bad)]
    node = {
        "num_bad": len(rows),
        "kinds": dict(sorted(Counter(item.kind for item in tally.bad).items())),
        "skipped": dict(sorted(tally.skipped.items())),
        "odd": dict(sorted(tally.odd.items())),
        "samples": rows,
    }
    storage.write(QUARANTINE_KEY, (json.dumps(node, indent=1) + "\n").encode())


def load_quarantine(storage: Storage) -> dict[str, Any]:
    """The report; an empty one where it is missing or damaged."""
    try:
        node = json.loads(storage.read(QUARANTINE_KEY))
        return node if isinstance(node["num_bad"], int) else {"num_bad": 0}
    except (DataError, ValueError, KeyError, TypeError):
        return {"num_bad": 0}


def remove_parts(storage: Storage) -> None:
    """Remove the records, which the manifest has made superfluous."""
    remove_all(storage, PARTS_PREFIX)


def remove_all(storage: Storage, prefix: str) -> None:
    """Remove every object below a prefix."""
    # The listing is taken whole first: a store may page through what is left.
    for item in list(storage.list(prefix)):
        storage.delete(item.key)


def _class_names(origin: Origin, tally: SplitTally) -> tuple[str, ...]:
    """The source's names; numbers where it has none or too few."""
    missing = range(len(origin.classes), tally.num_classes)
    return origin.classes + tuple(str(number) for number in missing)


def _write(storage: Storage, key: str, data: bytes) -> str:
    storage.write(key, data)
    return _digest(data)


def _digest(data: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(data)
