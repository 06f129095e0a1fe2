"""Opens a corpus: one of `gear-dist shard` by its manifest, or stock webdataset tars, indexed."""

import contextlib
import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import xxhash
from filelock import FileLock

from gear_dist.data.manifest import DATASET_KEY, SPLITS, CorpusManifest, DatasetInfo, load_manifest
from gear_dist.data.shard_reader import LooseShard, Shard, UnreadableSampleError, index_samples
from gear_dist.data.split_names import split_of
from gear_dist.data.tar_samples import READ_SUFFIXES
from gear_dist.errors import DataError
from gear_dist.storage.atomic import write_file
from gear_dist.storage.base import Storage
from gear_dist.storage.cache_folder import cache_folder
from gear_dist.storage.checksums import crc64nvme_hex
from gear_dist.storage.open import open_storage

_COUNT_THREADS = 4
_COUNT_VERSION = 3
"""Of what counts as a sample: counts of another version are recounted."""


class Corpus(NamedTuple):
    """Where a corpus is, and what it holds."""

    storage: Storage
    manifest: CorpusManifest


class _Counted(NamedTuple):
    """What reading a loose tar has shown."""

    name: str
    samples: int
    bytes: int
    crc64nvme: str
    num_classes: int
    left_out: int
    """Samples without an image that the loader reads."""
    without_class: int
    without_caption: int
    first_class: int = -1
    """The smallest class index; -1: there is none, or a former version did not look."""


def open_corpus(address: str, endpoint: str = "") -> Corpus:
    """The corpus at an address.

    Where no manifest of ours is, but webdataset tars are, each is read whole once to count its
    samples; the counts are kept under XDG_CACHE_HOME (else ~/.cache) and hold as long as names and
    sizes of the tars stay.

    Args:
        address: see `open_storage`.
        endpoint: S3 endpoint; empty: AWS_ENDPOINT_URL, else AWS itself.

    Raises:
        DataError: no finished corpus there, a damaged manifest or tar, no tar with images.
    """
    storage = open_storage(address, endpoint)
    if storage.exists(DATASET_KEY) or storage.exists("manifest/plan.json"):
        return Corpus(storage, load_manifest(storage))
    if any(storage.exists(f"{split}/{DATASET_KEY}") for split in SPLITS):
        return Corpus(storage, load_manifest(storage))  # which names them
    tars = {item.key: item.bytes for item in storage.list() if item.key.endswith(".tar")}
    if not tars:
        return Corpus(storage, load_manifest(storage))  # which says what is missing
    return Corpus(storage, _loose_manifest(storage, tars))


def check_same_classes(
    address: str, classes: tuple[str, ...], other_address: str, others: tuple[str, ...]
) -> None:
    """Raise DataError where class indices of two corpora do not mean the same classes."""
    if classes != others:
        raise DataError(
            f"{other_address}: its classes are not those of {address}; shard both from one source "
            "folder"
        )


def _loose_manifest(storage: Storage, tars: dict[str, int]) -> CorpusManifest:
    listing = json.dumps([_COUNT_VERSION, storage.address, tars])
    digest = xxhash.xxh3_128_hexdigest(listing.encode())
    path = cache_folder() / f"counts-{digest}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # one process counts, the others wait for it
        counted = _read_counts(path)
        if counted is None:
            with ThreadPoolExecutor(_COUNT_THREADS) as pool:
                counted = list(pool.map(lambda name: _count(storage, name), tars))
            write_file(path, json.dumps(counted).encode())
    others = [name for name in tars if split_of(name) != "train"]
    if others and len(others) < len(tars):
        warnings.warn(
            f"{storage.address}: {len(others)} of {len(tars)} tars are called those of another "
            f"split, such as {others[0]}, and are read as all others: keep each split under a "
            "prefix of its own",
            stacklevel=2,
        )
    shards = tuple(LooseShard(number, *row[:4]) for number, row in enumerate(counted))
    num_classes = max(row.num_classes for row in counted)
    left_out = sum(row.left_out for row in counted)
    if left_out:
        warnings.warn(
            f"{storage.address}: {left_out} samples are left out: they have no image under a plain "
            f"name, KEY.{' or KEY.'.join(READ_SUFFIXES)}; `gear-dist shard` says which",
            stacklevel=2,
        )
    first_class = min((row.first_class for row in counted if row.num_classes), default=-1)
    if first_class > 0:
        warnings.warn(
            f"{storage.address}: its classes begin at {first_class}, so that class 0 has no image: "
            "a generator learns nothing of it; number classes from 0",
            stacklevel=2,
        )
    info = DatasetInfo(
        schema_version=0,
        num_samples=sum(shard.samples for shard in shards),
        num_shards=len(shards),
        classes=tuple(map(str, range(num_classes))),
        attributes={},
        source=storage.address,
        settings={},
        # Checkpoints keep it: what does not change the order of samples is not in it.
        plan_hash=xxhash.xxh3_128_hexdigest(json.dumps([row[:8] for row in counted]).encode()),
        tool_version="webdataset",
        checksums={},
        num_without_class=sum(row.without_class for row in counted),
        num_without_caption=sum(row.without_caption for row in counted),
    )
    return CorpusManifest(info, shards)


def _count(storage: Storage, name: str) -> _Counted:
    data = storage.read(name)
    try:
        shard = index_samples(data)
    except ValueError as error:
        raise DataError(f"{storage.address}/{name}: corrupt shard: {error}; restore it") from None
    return _Counted(name, len(shard.keys), len(data), crc64nvme_hex(data), *_count_texts(shard))


def _count_texts(shard: Shard) -> tuple[int, int, int, int, int]:
    """The last fields of `_Counted`. A class that is not a number is none."""
    found: set[int] = set()
    without_class = without_caption = 0
    for row in range(len(shard.keys)):
        try:
            label = shard.class_index(row)
        except UnreadableSampleError:
            label = -1
        if label >= 0:
            found.add(label)
        without_class += label < 0
        with contextlib.suppress(UnreadableSampleError):
            without_caption += not shard.captions(row)
    num_classes, first_class = max(found, default=-1) + 1, min(found, default=-1)
    return num_classes, shard.num_left_out, without_class, without_caption, first_class


def _read_counts(path: Path) -> list[_Counted] | None:
    try:
        return [_Counted(*row) for row in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError):
        return None
