"""Compares a finished corpus with its manifest; what differs is a fault, with what mends it."""

import itertools
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa
import xxhash

from gear_data_prep.images.checks import ImageSettings, check_image
from gear_data_prep.samples import BadSampleError
from gear_data_prep.sharding.manifest_writer import is_corpus_object
from gear_dist.data.manifest import (
    DATASET_KEY,
    CorpusManifest,
    DatasetInfo,
    ShardInfo,
    iterate_samples,
    load_manifest,
)
from gear_dist.data.tar_members import TarDamageError, walk_members
from gear_dist.data.tar_samples import IMAGE_SUFFIXES
from gear_dist.errors import DataError
from gear_dist.progress import ImageProgress
from gear_dist.storage.base import MissingObjectError, Storage
from gear_dist.storage.checksums import crc64nvme_hex

_THREADS = 2
"""Reading and summing up release the interpreter's lock."""
# Kept whatever their colours: what is in a shard has been through the policies.
_DECODE = ImageSettings(max_pixels=1 << 40, max_bytes=1 << 40)


class Fault(NamedTuple):
    """Something that is not as the manifest says."""

    key: str
    what: str
    shard: int = -1
    """The shard that has to be rewritten; -1: the manifest, or an object too many."""


class VerifySettings(NamedTuple):
    """How much is looked at."""

    samples: int = 0
    """Read so many shards only, chosen by the seed; 0: all. Sizes are compared for all."""
    decode: bool = False
    """Whether every image is decoded strictly."""
    seed: int = 0


class VerifyResult(NamedTuple):
    """What was found."""

    info: DatasetInfo | None
    faults: tuple[Fault, ...]
    num_shards: int
    """Shards that were read."""
    num_bytes: int
    """Bytes that were read."""
    seconds: float


def verify_corpus(storage: Storage, settings: VerifySettings) -> VerifyResult:
    """Compare objects with the manifest: presence, size, checksum, members, hashes, images.

    Raises:
        DataError: there is no finished corpus.
        StorageError, DataError: the store is unreachable.
    """
    if not storage.exists(DATASET_KEY):
        load_manifest(storage)
    try:
        manifest = load_manifest(storage)
    except DataError as error:
        return VerifyResult(None, (Fault(DATASET_KEY, str(error)),), 0, 0, 0.0)
    faults = list(_check_files(storage, manifest))
    sizes = {item.key: item.bytes for item in storage.list()}
    faults += _check_listing(manifest, sizes)
    broken = {fault.shard for fault in faults}
    chosen = [info for info in manifest.shards if info.shard not in broken]
    if settings.samples and settings.samples < len(chosen):
        chosen = random.Random(settings.seed).sample(chosen, settings.samples)
    progress = ImageProgress("verify", sum(info.samples for info in chosen))
    rows = _rows_by_shard(storage, {info.shard for info in chosen})
    num_bytes = 0
    try:
        for info, found in _read_all(storage, chosen, rows, settings.decode):
            faults += found
            num_bytes += info.bytes
            progress.advance(info.samples, info.bytes)
    except DataError as error:
        faults.append(Fault(DATASET_KEY, str(error)))
    result = tuple(sorted(faults, key=lambda fault: (fault.shard, fault)))
    return VerifyResult(manifest.info, result, len(chosen), num_bytes, progress.finish())


def _check_files(storage: Storage, manifest: CorpusManifest) -> Iterator[Fault]:
    """The manifest's own files against the sums in dataset.json."""
    for key, digest in sorted(manifest.info.checksums.items()):
        try:
            data = storage.read(key)
        except MissingObjectError:
            yield Fault(key, "it is missing")
            continue
        if xxhash.xxh3_128_hexdigest(data) != digest:
            yield Fault(key, "its checksum differs from dataset.json's")


def _check_listing(manifest: CorpusManifest, sizes: dict[str, int]) -> Iterator[Fault]:
    for info in manifest.shards:
        size = sizes.get(info.key)
        if size is None:
            yield Fault(info.key, "it is missing", info.shard)
        elif size != info.bytes:
            yield Fault(info.key, f"{size} bytes instead of {info.bytes}", info.shard)
    known = {info.key for info in manifest.shards} | {DATASET_KEY, *manifest.info.checksums}
    for key in sorted(set(sizes) - known):
        # What is called otherwise is somebody else's, no fault, and not for `repair` to remove.
        if is_corpus_object(key):
            yield Fault(key, "an object not listed in the manifest")


def _rows_by_shard(storage: Storage, wanted: set[int]) -> Iterator[tuple[int, pa.Table]]:
    """The rows of each wanted shard, a part of the table in memory at a time."""
    for table in iterate_samples(storage):
        shards = table["shard"].to_numpy()
        starts = [0, *((shards[1:] != shards[:-1]).nonzero()[0] + 1).tolist(), len(shards)]
        for start, end in itertools.pairwise(starts):
            if end > start and int(shards[start]) in wanted:
                yield int(shards[start]), table.slice(start, end - start)


def _read_all(
    storage: Storage,
    chosen: list[ShardInfo],
    rows: Iterator[tuple[int, pa.Table]],
    decode: bool,
) -> Iterator[tuple[ShardInfo, list[Fault]]]:
    infos = {info.shard: info for info in chosen}
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting = []
        for shard, table in rows:
            info = infos.pop(shard)
            waiting.append((info, pool.submit(_read_shard, storage, info, table, decode)))
            if len(waiting) > _THREADS:
                done, future = waiting.pop(0)
                yield done, future.result()
        for info, future in waiting:
            yield info, future.result()
    for info in infos.values():  # shards whose samples were all left out, or without rows
        empty = info.samples == 0
        yield (
            info,
            _read_shard(storage, info, None, decode)
            if empty
            else [Fault(DATASET_KEY, f"no rows of {info.name} among the samples")],
        )


def _read_shard(
    storage: Storage, info: ShardInfo, rows: pa.Table | None, decode: bool
) -> list[Fault]:
    try:
        data = storage.read(info.key)
    except MissingObjectError:
        return [Fault(info.key, "it is missing", info.shard)]
    if crc64nvme_hex(data) != info.crc64nvme:
        return [Fault(info.key, "its checksum differs from the manifest's", info.shard)]
    faults = _compare_rows(info, data, rows)
    if decode and not faults:
        faults = _decode_images(info, data)
    return faults


def _compare_rows(info: ShardInfo, data: bytes, rows: pa.Table | None) -> list[Fault]:
    """Members against rows: a manifest that was written wrongly, whose sums are right."""
    columns = rows.to_pydict() if rows is not None else {"key": []}
    found = len(columns["key"])
    if found != info.samples:
        return [Fault(DATASET_KEY, f"{found} rows of {info.name} instead of {info.samples}")]
    view = memoryview(data)
    for number, key in enumerate(columns["key"]):
        start = columns["offset"][number]
        image = view[start : start + columns["bytes"][number]]
        if xxhash.xxh3_128_hexdigest(image) != columns["xxh3"][number]:
            return [Fault(info.key, f"sample {key} differs from its hash", info.shard)]
    return []


def _decode_images(info: ShardInfo, data: bytes) -> list[Fault]:
    faults = []

    def read(position: int, length: int) -> bytes:
        return data[position : position + length]

    try:
        for member in walk_members(read, 0, len(data)):
            suffix = member.name.rpartition(".")[2]
            if suffix not in IMAGE_SUFFIXES:
                continue
            try:
                check_image(read(member.offset, member.size), "", _DECODE)
            except BadSampleError as error:
                faults.append(Fault(f"{info.key}/{member.name}", str(error), info.shard))
    except TarDamageError as error:
        faults.append(Fault(info.key, str(error), info.shard))
    return faults


def dump_result(address: str, result: VerifyResult) -> str:
    """The result as JSON."""
    node = {
        "address": address,
        "faults": [fault._asdict() for fault in result.faults],
        "shards_read": result.num_shards,
        "bytes_read": result.num_bytes,
        "seconds": round(result.seconds, 3),
    }
    return json.dumps(node, indent=1)
