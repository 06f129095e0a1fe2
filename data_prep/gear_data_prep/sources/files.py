"""Files of a source, on a folder or an object store: found by suffix, read at positions."""

import io
from typing import BinaryIO, NamedTuple

from gear_dist.data.tar_members import ReadAt
from gear_dist.errors import DataError
from gear_dist.storage.addresses import parse_address, split_address
from gear_dist.storage.base import ObjectInfo, Storage
from gear_dist.storage.local import FileStorage
from gear_dist.storage.open import open_storage
from gear_dist.storage.paths import local_path
from gear_dist.storage.ranged_file import RangedFile

_WINDOW_BYTES = 4 << 20


class SourceOptions(NamedTuple):
    """How a source is read; part of the plan, and kept with the corpus for `repair`."""

    validation_share: float = 0.1
    """Share held out where the source has no validation split."""
    block_samples: int = 16
    """Most neighbouring samples of a tar that are read together."""
    classes: tuple[str, ...] = ()
    """Names by class index, for sources that have numbers only."""
    labels: str = ""
    """Class of each validation image by file name, for ImageNet; see imagenet.py."""
    image_column: str = ""
    """Parquet: the column of image bytes; empty: the first of the usual names."""
    caption_column: str = ""
    """Parquet, URL tables: the caption's column; JSON sidecars: its member."""
    class_column: str = ""
    """Parquet: the column of class indices."""
    url_column: str = ""
    """URL tables: the column of addresses."""
    fetched: str = ""
    """URL tables: where the images are kept."""
    origins: bool = False
    """Tars and parquet: whether licences and their kin are read; not for corpora that were made
    before they were."""


class SourceFile(NamedTuple):
    """A file of a source."""

    storage: Storage
    key: str
    bytes: int


class Place(NamedTuple):
    """Where a source is."""

    storage: Storage
    only: str
    """The key of the one file where the address names one; else empty."""
    endpoint: str


def open_root(address: str, endpoint: str) -> Place:
    """The place of a source, a folder, prefix or file."""
    storage = open_storage(address, endpoint)
    if isinstance(storage, FileStorage):
        if storage.root.is_file():
            return Place(FileStorage(storage.root.parent), storage.root.name, endpoint)
        return Place(storage, "", endpoint)
    if "." in parse_address(address).path.rpartition("/")[2]:
        parent, name = split_address(address)
        folder = open_storage(parent, endpoint)
        if folder.exists(name):
            return Place(folder, name, endpoint)
    return Place(storage, "", endpoint)


def find_files(storage: Storage, only: str, suffixes: tuple[str, ...]) -> list[ObjectInfo]:
    """Files that end so, in the order of their keys, hidden ones left out.

    Raises:
        DataError: there is none.
    """
    if only:
        return [ObjectInfo(only, storage.size(only))]
    found = [
        item
        for item in storage.list()
        if item.key.lower().endswith(suffixes)
        and not any(part.startswith(".") for part in item.key.split("/"))
    ]
    if not found:
        raise DataError(f"{storage.address}: no {' or '.join(suffixes)} files there")
    return found


def is_remote(storage: Storage) -> bool:
    """Whether reads wait for a network."""
    return not isinstance(storage, FileStorage)


def open_seekable(storage: Storage, key: str) -> BinaryIO:
    """A file for reading at positions; a remote one by ranges, a few MiB at a time."""
    if isinstance(storage, FileStorage):
        try:
            return open(storage.root / key, "rb", buffering=0)
        except OSError as error:
            raise DataError(f"{storage.root / key}: cannot be read: {error.strerror}") from None
    return io.BufferedReader(RangedFile(storage, key), _WINDOW_BYTES)


def read_at(stream: BinaryIO) -> ReadAt:
    """`ReadAt` of a seekable stream."""

    def read(position: int, length: int) -> bytes:
        stream.seek(position)
        return stream.read(length)

    return read


def read_lines(address: str) -> list[str]:
    """Lines of a local text file, without byte-order mark and blank ones.

    Raises:
        DataError: it cannot be read.
    """
    try:
        text = local_path(address).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{address}: cannot be read: {error}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
