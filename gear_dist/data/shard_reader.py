"""Webdataset tars to samples: fetched whole, checked against the manifest, parsed by hand.

A stock tarfile walk costs more than decoding a small image; the plain ustar headers that our
writer and webdataset's use are read here directly.
"""

import json
from typing import Any, NamedTuple, NoReturn

from gear_dist.checksums import crc64nvme_hex
from gear_dist.data.manifest import ShardInfo
from gear_dist.errors import DataError
from gear_dist.storage import MissingObjectError, Storage

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp")
_BLOCK = 512
_REGULAR = (b"0", b"\0")


class Sample(NamedTuple):
    """One sample of a shard, undecoded."""

    key: str
    image: bytes
    class_index: int
    """-1: none."""
    caption: str | None
    attributes: dict[str, int]


def read_shard(storage: Storage, shard: ShardInfo) -> list[Sample]:
    """Fetch a shard and parse it, in the tar's order.

    Raises:
        DataError: missing, or its bytes, sample count or members differ from the manifest's.
    """
    return parse_samples(storage, shard, fetch_shard(storage, shard))


def fetch_shard(storage: Storage, shard: ShardInfo) -> bytes:
    """The tar's bytes, verified by size and CRC-64/NVME.

    Raises:
        DataError: missing or changed; names the object and how to remake it.
    """
    try:
        data = storage.read(shard.key)
    except MissingObjectError:
        _corrupt(storage, shard, "it is missing")
    if len(data) != shard.bytes:
        _corrupt(storage, shard, f"{len(data)} bytes instead of {shard.bytes}")
    if crc64nvme_hex(data) != shard.crc64nvme:
        _corrupt(storage, shard, "its checksum differs from the manifest's")
    return data


def parse_samples(storage: Storage, shard: ShardInfo, data: bytes) -> list[Sample]:
    """Group a tar's members by key into samples.

    Raises:
        DataError: not a tar, a truncated one, a sample without an image, a wrong count.
    """
    groups: dict[str, dict[str, bytes]] = {}
    try:
        for name, start, size in list_members(data):
            key, _, suffix = name.partition(".")
            groups.setdefault(key, {})[suffix.lower()] = data[start : start + size]
        samples = [_sample(key, parts) for key, parts in groups.items()]
    except ValueError as error:
        _corrupt(storage, shard, str(error))
    if len(samples) != shard.samples:
        _corrupt(storage, shard, f"{len(samples)} samples instead of {shard.samples}")
    return samples


def list_members(data: bytes) -> list[tuple[str, int, int]]:
    """Name, offset of the data and size of every regular file in a tar (ustar, pax or GNU names).

    Raises:
        ValueError: a damaged header, a member that reaches beyond the end, no end marker.
    """
    members: list[tuple[str, int, int]] = []
    extended: dict[str, str] = {}
    position = 0
    while True:
        header = data[position : position + _BLOCK]
        if len(header) < _BLOCK:
            raise ValueError(f"the tar breaks off at byte {position}")
        if not header.strip(b"\0"):
            return members
        name, size, kind = _parse_header(header, position)
        name = extended.get("path", name)
        start = position + _BLOCK
        if start + size > len(data):
            raise ValueError(f"the tar breaks off inside {name}")
        if kind in _REGULAR:
            members.append((name, start, size))
        extended = _extensions(kind, data[start : start + size])
        position = start + (size + _BLOCK - 1) // _BLOCK * _BLOCK


def _parse_header(header: bytes, position: int) -> tuple[str, int, bytes]:
    """Name, size and type flag."""
    try:
        name = header[:100].rstrip(b"\0").decode()
        size = int(header[124:136].strip(b" \0") or b"0", 8)
        checksum = int(header[148:156].strip(b" \0"), 8)
    except ValueError:
        raise ValueError(f"no tar header at byte {position}") from None
    if size < 0 or checksum != sum(header[:148]) + sum(header[156:]) + 8 * 32:
        raise ValueError(f"a damaged tar header at byte {position}")
    return name, size, header[156:157]


def _extensions(kind: bytes, data: bytes) -> dict[str, str]:
    """What an extended header says of the member that follows it."""
    if kind == b"L":
        return {"path": data.rstrip(b"\0").decode()}
    if kind != b"x":
        return {}
    records = (line.partition(b" ")[2].partition(b"=") for line in data.split(b"\n"))
    found = {key.decode(): value.decode() for key, _, value in records if key}
    if "size" in found:
        raise ValueError("members of 8 GiB and more are not supported")
    return found


def _sample(key: str, parts: dict[str, bytes]) -> Sample:
    image = next((parts[suffix] for suffix in IMAGE_SUFFIXES if suffix in parts), None)
    if image is None:
        raise ValueError(f"sample {key} has no image")
    caption = parts["txt"].decode() if "txt" in parts else None
    class_index = int(parts["cls"]) if "cls" in parts else -1
    attributes: dict[str, Any] = json.loads(parts["json"]) if "json" in parts else {}
    return Sample(key, image, class_index, caption, attributes)


def _corrupt(storage: Storage, shard: ShardInfo, why: str) -> NoReturn:
    raise DataError(
        f"{storage.address}/{shard.key}: corrupt shard: {why}; make the corpus again with "
        f"`gear-dist shard SOURCE DESTINATION --overwrite`"
    ) from None
