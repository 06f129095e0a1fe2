"""Where a corpus's images come from: part of the source, licence, attribution. No torch.

They lie in each sample's KEY.json under GPIC's names (`split`, `license`, `license_url`,
`attribution`, `caption_type`), and in manifest/origins-00000.parquet (ORIGINS_SCHEMA), row for row
as the samples table; a corpus whose source tells none of them has no such table.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

import pyarrow as pa

from gear_dist.data.manifest import CorpusManifest, DatasetInfo, load_checked_table
from gear_dist.storage.base import Storage

ORIGINS_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("split", pa.string()),
        ("caption_types", pa.string()),  # joined by TYPE_SEPARATOR
        ("license", pa.string()),
        ("license_url", pa.string()),
        ("attribution", pa.string()),
    ]
)
TYPE_SEPARATOR = ","
MAX_COUNTED = 100
"""Values of a kind that dataset.json counts, the most frequent ones."""
UNKNOWN = "not stated"


class SampleOrigin(NamedTuple):
    """What a source tells of an image; empty texts: nothing."""

    split: str = ""
    """The part of the source, such as GPIC's nano, lite and full."""
    license: str = ""
    license_url: str = ""
    attribution: str = ""


class OriginRow(NamedTuple):
    """A row of the origins table (ORIGINS_SCHEMA)."""

    key: str
    split: str
    caption_types: str
    license: str
    license_url: str
    attribution: str


def origin_row(key: str, caption_types: Sequence[str], origin: SampleOrigin) -> OriginRow:
    """The row of a sample."""
    # A type with a comma in its name would be two.
    kinds = dict.fromkeys(kind.replace(TYPE_SEPARATOR, " ") for kind in caption_types if kind)
    return OriginRow(
        key,
        origin.split,
        TYPE_SEPARATOR.join(kinds),
        origin.license,
        origin.license_url,
        origin.attribution,
    )


def origins_key(part: int) -> str:
    """Where a part of the origins table is."""
    return f"manifest/origins-{part:05d}.parquet"


def origins_keys(info: DatasetInfo) -> list[str]:
    """The parts of the origins table in their order; none where the source tells no origins."""
    return sorted(key for key in info.checksums if key.startswith("manifest/origins-"))


def iterate_origins(storage: Storage, info: DatasetInfo) -> Iterator[pa.Table]:
    """The origins table part by part, as `manifest.iterate_samples`; nothing where there is none.

    Raises:
        DataError: a part is damaged.
    """
    for key in origins_keys(info):
        yield load_checked_table(storage, info, key, ORIGINS_SCHEMA)


def count_licenses(info: DatasetInfo) -> list[tuple[str, int]]:
    """Licences with their numbers of images, the most frequent first, then those not stated.

    Empty where the source tells none at all.
    """
    if not info.licenses:
        return []
    counted = sorted(info.licenses.items(), key=lambda pair: (-pair[1], pair[0]))
    rest = info.num_samples - sum(info.licenses.values())
    return [*counted, *([(UNKNOWN, rest)] if rest else [])]


def most_frequent(counts: Mapping[str, int]) -> dict[str, int]:
    """At most MAX_COUNTED of the counts, in the order of their names."""
    kept = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:MAX_COUNTED]
    return dict(sorted(kept))


def write_attribution(stream: TextIO, storage: Storage, manifest: CorpusManifest) -> int:
    """Every image that states an origin as a line of CSV; returns how many do.

    Raises:
        DataError: the table is damaged.
    """
    writer = csv.writer(stream, lineterminator="\n")
    names: list[str] = [field.name for field in ORIGINS_SCHEMA]
    writer.writerow(names)
    count = 0
    for table in iterate_origins(storage, manifest.info):
        for row in table.to_pylist():
            if any(row[name] for name in names[1:]):
                writer.writerow([_one_line(row[name]) for name in names])
                count += 1
    return count


def attribution_line(row: Mapping[str, Any]) -> str:
    """Key, licence, its address and attribution of a row of the table; empty: it states none."""
    told = [row[name] for name in ("license", "license_url", "attribution")]
    return "; ".join([row["key"], *filter(None, map(_one_line, told))]) if any(told) else ""


def _one_line(text: Any) -> str:
    return " ".join(str(text).split())
