"""The manifest of a sharded corpus: what it holds, shard by shard and sample by sample. No torch.

ROOT/shards/000000.tar                webdataset tars
ROOT/manifest/samples-00000.parquet   a row a sample (SAMPLES_SCHEMA), in parts of whole shards
ROOT/manifest/shards.parquet          a row a shard (SHARDS_SCHEMA)
ROOT/manifest/dataset.json            counts and settings; written last: "complete"

A sample is KEY.jpg (or another image suffix), KEY.cls where it has a class, KEY.txt (its first
caption) where it has captions, KEY.json where it has attributes (integers by name), several
captions ({"captions": [...]}), types of captions or an origin (see origins.py, which also has a
table of its own). Keys hold no dots.
"""

import io
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from gear_dist.errors import DataError
from gear_dist.formatting import first_line
from gear_dist.storage.base import MissingObjectError, Storage
from gear_dist.storage.json_files import build_record, parse_json

SCHEMA_VERSION = 2
DATASET_KEY = "manifest/dataset.json"
SPLITS = ("train", "validation")
"""Folders of a destination, a corpus each."""
SHARDS_KEY = "manifest/shards.parquet"
PART_SAMPLES = 500_000
"""A part of the samples table ends with the shard that reaches this number."""

SAMPLES_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("class_index", pa.int32()),  # -1: no class
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int64()),
        ("xxh3", pa.string()),  # hex xxh3-128 of the image's bytes
        ("shard", pa.int32()),
        ("offset", pa.int64()),  # of the image's bytes in the tar
        ("num_captions", pa.int16()),
        ("caption_chars", pa.int32()),  # of all captions
    ]
)
SHARDS_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("name", pa.string()),
        ("samples", pa.int64()),
        ("bytes", pa.int64()),
        ("crc64nvme", pa.string()),  # 16 hex digits, CRC-64/NVME of the whole tar
    ]
)


class ShardInfo(NamedTuple):
    """A row of the shards table."""

    shard: int
    name: str
    """File name under shards/."""
    samples: int
    bytes: int
    crc64nvme: str

    @property
    def key(self) -> str:
        """The shard's object key."""
        return f"shards/{self.name}"


class DatasetInfo(NamedTuple):
    """dataset.json."""

    schema_version: int
    num_samples: int
    num_shards: int
    classes: tuple[str, ...]
    """Class names in the order of their indices."""
    attributes: dict[str, int]
    """Number of values of each attribute that every sample has; values are 0 .. number - 1."""
    source: str
    settings: dict[str, Any]
    plan_hash: str
    tool_version: str
    checksums: dict[str, str]
    """Hex xxh3-128 of the manifest's other files by key."""
    num_without_class: int = -1
    """Samples without a class; -1: an earlier version did not count (see `contents`)."""
    num_without_caption: int = -1
    """Samples without a caption; -1: as above."""
    licenses: dict[str, int] = {}  # noqa: RUF012 - never changed
    """Samples of each licence that the source states, the most frequent ones."""
    subsets: dict[str, int] = {}  # noqa: RUF012 - never changed
    """Samples of each part (`split`) that the source states."""
    caption_types: dict[str, int] = {}  # noqa: RUF012 - never changed
    """Samples that have a caption of the type, where the source states types."""

    @property
    def samples_keys(self) -> list[str]:
        """The parts of the samples table in their order."""
        return sorted(key for key in self.checksums if key.startswith("manifest/samples-"))


class CorpusManifest(NamedTuple):
    """A corpus that is complete."""

    info: DatasetInfo
    shards: tuple[ShardInfo, ...]


def load_manifest(storage: Storage) -> CorpusManifest:
    """Read dataset.json and the shards table, and check that they agree.

    Raises:
        DataError: no finished corpus there, a damaged manifest, another schema version.
    """
    data = _read_info(storage)
    info = _parse_info(storage, data)
    table = load_checked_table(storage, info, SHARDS_KEY, SHARDS_SCHEMA)
    shards = tuple(ShardInfo(**row) for row in table.to_pylist())
    found = (len(shards), sum(shard.samples for shard in shards))
    if found != (info.num_shards, info.num_samples):
        _damaged(storage, SHARDS_KEY, "its counts differ from dataset.json's")
    if [shard.shard for shard in shards] != list(range(len(shards))):
        _damaged(storage, SHARDS_KEY, "shards are not numbered 0, 1, ...")
    if not _is_whole(data):
        _damaged(storage, DATASET_KEY, "its bytes differ from its own checksum")
    return CorpusManifest(info, shards)


def samples_key(part: int) -> str:
    """Where a part of the samples table is."""
    return f"manifest/samples-{part:05d}.parquet"


def group_parts(shards: Sequence[ShardInfo]) -> Iterator[list[ShardInfo]]:
    """The shards of each part of the samples table."""
    group: list[ShardInfo] = []
    samples = 0
    for info in shards:
        group.append(info)
        samples += info.samples
        if samples >= PART_SAMPLES:
            yield group
            group, samples = [], 0
    if group:
        yield group


def iterate_samples(storage: Storage) -> Iterator[pa.Table]:
    """The samples table (SAMPLES_SCHEMA) part by part, in the order of shards.

    Raises:
        DataError: as `load_manifest`.
    """
    info = _parse_info(storage, _read_info(storage))
    num_rows = 0
    for key in info.samples_keys:
        table = load_checked_table(storage, info, key, SAMPLES_SCHEMA)
        num_rows += table.num_rows
        yield table
    if num_rows != info.num_samples:
        _damaged(storage, DATASET_KEY, f"{num_rows} rows of samples, not num_samples")


def load_samples(storage: Storage) -> pa.Table:
    """The whole samples table (SAMPLES_SCHEMA), about 100 bytes of memory a row.

    Raises:
        DataError: as `load_manifest`.
    """
    return pa.concat_tables([SAMPLES_SCHEMA.empty_table(), *iterate_samples(storage)])


def dump_info(info: DatasetInfo) -> bytes:
    """dataset.json's bytes, with their own checksum: the same contents give the same bytes."""
    node = info._asdict()
    return _dump_json({**node, "xxh3": _own_checksum(node)})


def dump_table(table: pa.Table) -> bytes:
    """Parquet bytes of a manifest table."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=1 << 16)
    return sink.getvalue()


def _dump_json(node: dict[str, Any]) -> bytes:
    return (json.dumps(node, indent=1, sort_keys=True) + "\n").encode()


def _own_checksum(node: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(_dump_json(node))


def _is_whole(data: bytes) -> bool:
    """Whether dataset.json is, byte for byte, what `dump_info` wrote."""
    node = parse_json(data)
    digest = node.pop("xxh3", None)
    return digest == _own_checksum(node) and data == _dump_json({**node, "xxh3": digest})


def _read_info(storage: Storage) -> bytes:
    try:
        return storage.read(DATASET_KEY)
    except MissingObjectError:
        started = storage.exists("manifest/plan.json")
    if nested := [split for split in SPLITS if storage.exists(f"{split}/{DATASET_KEY}")]:
        raise DataError(
            f"{storage.address}: holds a corpus for each split: use {storage.address}/{nested[0]}"
        )
    problem = "sharding has not finished there" if started else "no sharded corpus is there"
    raise DataError(
        f"{storage.address}: {problem} ({DATASET_KEY} is missing): "
        "run `gear-dist shard SOURCE DESTINATION`, or check the address"
    )


def _parse_info(storage: Storage, data: bytes) -> DatasetInfo:
    try:
        node = parse_json(data)
        node.pop("xxh3", None)
        version = node["schema_version"]
        if version != SCHEMA_VERSION:
            _damaged(storage, DATASET_KEY, f"schema version {version}, this is {SCHEMA_VERSION}")
        return build_record(DatasetInfo, node)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        _damaged(storage, DATASET_KEY, f"{type(error).__name__} {error}")


def load_checked_table(
    storage: Storage, info: DatasetInfo, key: str, schema: pa.Schema
) -> pa.Table:
    """A table of the manifest, compared with its checksum; DataError where it is damaged."""
    data = storage.read(key)
    if xxhash.xxh3_128_hexdigest(data) != info.checksums.get(key):
        _damaged(storage, key, "its checksum differs from dataset.json's")
    try:
        # read_table goes through pyarrow's dataset threads. One of those that still lets go of a
        # Python file while the interpreter ends takes the process down (pyarrow 26.0.1: exit 134).
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    except pa.ArrowException as error:
        _damaged(storage, key, first_line(error))
    if table.schema != schema:
        _damaged(storage, key, "its columns are not those of this version")
    if any(column.null_count for column in table.columns):
        _damaged(storage, key, "it has empty cells")
    return table


def _damaged(storage: Storage, key: str, why: str) -> NoReturn:
    raise DataError(
        f"{storage.address}/{key}: damaged manifest: {why}; run `gear-dist repair CORPUS`, or make "
        "the corpus again with `gear-dist shard SOURCE DESTINATION --overwrite`"
    ) from None
