"""One shard: read its images, check them, write a tar and a record of what is in it.

A shard task is idempotent: the same planned shard gives the same bytes whoever runs it and
however often, so a killed one is simply run again.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import xxhash

from gear_data_prep.plan import PlannedShard, PlanSettings
from gear_data_prep.sources import SourceImage
from gear_dist.data.images import BadImageError, decode_image
from gear_dist.data.manifest import ShardInfo
from gear_dist.errors import DataError
from gear_dist.storage import Storage

_BLOCK = 512


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
    caption_chars: int


class BadImage(NamedTuple):
    """An image that was left out."""

    path: str
    reason: str


class ShardRecord(NamedTuple):
    """What a finished shard holds; published after it, under `record_key`."""

    plan_hash: str
    info: ShardInfo
    rows: tuple[SampleRow, ...]
    bad: tuple[BadImage, ...]
    attribute_counts: dict[str, int]
    """Samples that have the attribute."""
    attribute_maxima: dict[str, int]
    """Largest value of the attribute."""

    @property
    def num_planned(self) -> int:
        """Images that the plan gave the shard."""
        return len(self.rows) + len(self.bad)

    def dump(self) -> bytes:
        """JSON bytes, equal for equal records."""
        return json.dumps(self._asdict(), sort_keys=True).encode()

    @classmethod
    def load(cls, data: bytes) -> "ShardRecord":
        """The record of `dump`; ValueError, TypeError or KeyError where it is damaged."""
        node = json.loads(data)
        node["info"] = ShardInfo(*node["info"])
        node["rows"] = tuple(SampleRow(*row) for row in node["rows"])
        node["bad"] = tuple(BadImage(*row) for row in node["bad"])
        return cls(**node)


class _Loaded(NamedTuple):
    image: bytes
    width: int
    height: int
    caption: str | None
    attributes: dict[str, int]


class TarWriter:
    """A deterministic ustar stream that hashes what it writes: no times, no owners."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._hash = xxhash.xxh3_128()
        self.position = 0

    def add(self, name: str, data: bytes) -> int:
        """Append a member; the offset of its data."""
        self._write(_header(name, len(data)))
        offset = self.position
        self._write(data)
        self._write(b"\0" * (-len(data) % _BLOCK))
        return offset

    def finish(self) -> str:
        """Write the end marker; the tar's hex xxh3-128."""
        self._write(b"\0" * 2 * _BLOCK)
        return self._hash.hexdigest()

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._hash.update(data)
        self.position += len(data)


def record_key(shard: int) -> str:
    """Where the record of a shard is kept until the manifest is whole."""
    return f"manifest/parts/{shard:06d}.json"


def make_shard(
    storage: Storage, root: Path, planned: PlannedShard, settings: PlanSettings, plan_hash: str
) -> ShardRecord:
    """Write one shard, then its record, each atomically.

    Args:
        storage: where the corpus goes.
        root: the source's folder.
        planned: the shard's images.
        settings: limits that the images are checked against.
        plan_hash: plan that the record belongs to.

    Raises:
        DataError: a file vanished or cannot be read.
        StorageError: the destination refuses the write.
    """
    rows: list[SampleRow] = []
    bad: list[BadImage] = []
    counts: Counter[str] = Counter()
    maxima: dict[str, int] = {}
    with storage.writer(f"shards/{planned.name}") as stream:
        tar = TarWriter(stream)
        for number, image in enumerate(planned.images, planned.first):
            try:
                loaded = _load(root, image, settings.max_pixels)
            except BadImageError as error:
                bad.append(BadImage(image.path, str(error)))
                continue
            rows.append(_add_sample(tar, f"{number:08d}", image, loaded, planned.shard))
            counts.update(loaded.attributes.keys())
            for name, value in loaded.attributes.items():
                maxima[name] = max(value, maxima.get(name, 0))
        digest = tar.finish()
    info = ShardInfo(planned.shard, planned.name, len(rows), tar.position, digest)
    record = ShardRecord(plan_hash, info, tuple(rows), tuple(bad), dict(counts), maxima)
    storage.write(record_key(planned.shard), record.dump())
    return record


def find_finished(storage: Storage, planned: PlannedShard, plan_hash: str) -> ShardRecord | None:
    """The shard's record where a former run has finished it under this plan, else None.

    The shard itself is read back: a record counts only together with the bytes it describes.
    """
    key = record_key(planned.shard)
    if not storage.exists(key):
        return None
    try:
        record = ShardRecord.load(storage.read(key))
        data = storage.read(record.info.key)
    except (DataError, ValueError, TypeError, KeyError):
        return None
    same_plan = record.plan_hash == plan_hash and record.num_planned == len(planned.images)
    return record if same_plan and xxhash.xxh3_128_hexdigest(data) == record.info.xxh3 else None


def _add_sample(
    tar: TarWriter, key: str, image: SourceImage, loaded: _Loaded, shard: int
) -> SampleRow:
    offset = tar.add(f"{key}.{image.suffix}", loaded.image)
    tar.add(f"{key}.cls", str(image.class_index).encode())
    if loaded.caption is not None:
        tar.add(f"{key}.txt", loaded.caption.encode())
    if loaded.attributes:
        tar.add(f"{key}.json", json.dumps(loaded.attributes, sort_keys=True).encode())
    return SampleRow(
        key,
        image.class_index,
        loaded.width,
        loaded.height,
        len(loaded.image),
        xxhash.xxh3_128_hexdigest(loaded.image),
        shard,
        offset,
        len(loaded.caption or ""),
    )


def _load(root: Path, image: SourceImage, max_pixels: int) -> _Loaded:
    """Read an image with its sidecars; BadImageError where it must not go into a shard."""
    _, caption_bytes, attribute_bytes = image.sizes
    data = _read(root / image.path)
    width, height = decode_image(data, max_pixels).size
    caption, attributes = None, {}
    if caption_bytes >= 0:
        try:
            caption = _read(root / f"{image.stem}.txt").decode()
        except UnicodeDecodeError:
            raise BadImageError("its caption is not UTF-8") from None
    if attribute_bytes >= 0:
        attributes = _parse_attributes(_read(root / f"{image.stem}.json"))
    return _Loaded(data, width, height, caption, attributes)


def _parse_attributes(data: bytes) -> dict[str, int]:
    try:
        node: Any = json.loads(data)
    except ValueError:
        raise BadImageError("its attributes are not JSON") from None
    values = node.values() if isinstance(node, dict) else [None]
    if not all(type(value) is int and value >= 0 for value in values):
        raise BadImageError("its attributes are not an object of integers >= 0")
    return node


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _header(name: str, size: int) -> bytes:
    """A ustar header: mode 0644, owner and times 0."""
    header = bytearray(_BLOCK)
    header[: len(name)] = name.encode()
    header[100:124] = b"0000644\0" + b"0000000\0" * 2
    header[124:148] = b"%011o\0" % size + b"%011o\0" % 0
    header[148:156] = b" " * 8
    header[156:157] = b"0"
    header[257:265] = b"ustar\00000"
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)
