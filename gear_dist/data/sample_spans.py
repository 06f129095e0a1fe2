"""Where single samples are in their shards, from ranged reads of the samples table."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gear_dist.data.manifest import CorpusManifest, ShardInfo, group_parts, samples_key
from gear_dist.storage.base import Storage
from gear_dist.storage.ranged_file import RangedFile

_HEADER_BYTES = 512
_END_BYTES = 2 * _HEADER_BYTES
_COLUMNS = ["class_index", "xxh3", "shard", "offset", "num_captions", "caption_chars"]


class SampleSpan(NamedTuple):
    """A sample's members in its tar, and what the manifest knows of them."""

    start: int
    length: int
    xxh3: str
    """Of its image."""
    class_index: int
    num_captions: int
    caption_chars: int


class TablePart(NamedTuple):
    """A part of the samples table."""

    key: str
    shards: Sequence[ShardInfo]


def parts_with(manifest: CorpusManifest, shards: set[int]) -> Iterator[TablePart]:
    """The parts of the samples table that hold given shards; none of a corpus without one."""
    if not manifest.info.samples_keys:
        return
    for number, group in enumerate(group_parts(manifest.shards)):
        if shards.intersection(range(group[0].shard, group[-1].shard + 1)):
            yield TablePart(samples_key(number), group)


def read_spans(
    storage: Storage, part: TablePart, wanted: Mapping[int, Sequence[int]]
) -> dict[tuple[int, int], SampleSpan]:
    """Spans by shard and row, of one part. What is read, and its memory, is some row groups.

    A part's own checksum covers more than is read here, so what a span leads to is to be compared.

    Args:
        storage: the corpus.
        part: one of `parts_with`.
        wanted: rows by shard; shards of other parts are skipped.

    Raises:
        DataError: missing or unreachable.
        ValueError: not the table that the shards' sizes promise.
    """
    found: dict[tuple[int, int], SampleSpan] = {}
    try:
        with pq.ParquetFile(RangedFile(storage, part.key), pre_buffer=True) as table:
            first = 0
            for info in part.shards:
                if info.shard in wanted:
                    rows = _rows(table, first, info.samples)
                    found.update(_spans(info, rows, wanted[info.shard]))
                first += info.samples
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(f"{part.key}: {error}") from None
    return found


def _rows(table: pq.ParquetFile, first: int, count: int) -> pa.Table:
    metadata = table.metadata
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    ends = np.cumsum(sizes)
    low, high = np.searchsorted(ends, [first, first + count - 1], side="right").tolist()
    if high >= len(sizes):
        raise ValueError("fewer rows than the shards have samples")
    rows = table.read_row_groups(list(range(low, high + 1)), columns=_COLUMNS, use_threads=False)
    return rows.slice(first - int(ends[low] - sizes[low]), count)


def _spans(
    info: ShardInfo, rows: pa.Table, wanted: Sequence[int]
) -> Iterator[tuple[tuple[int, int], SampleSpan]]:
    if set(rows["shard"].to_pylist()) != {info.shard}:
        raise ValueError("rows of another shard")
    starts = [offset - _HEADER_BYTES for offset in rows["offset"].to_pylist()]
    ends = [*starts[1:], info.bytes - _END_BYTES]
    for row in wanted:
        known = rows.slice(row, 1).to_pylist()[0]
        yield (
            (info.shard, row),
            SampleSpan(
                starts[row],
                ends[row] - starts[row],
                known["xxh3"],
                known["class_index"],
                known["num_captions"],
                known["caption_chars"],
            ),
        )
