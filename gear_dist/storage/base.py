"""One interface to folders (file://) and object stores (s3://). No torch.

A `Storage` is a root address under which objects have keys such as `shards/000000.tar`. Writes
are atomic on both: an object appears whole, under its final name, or not at all.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from gear_dist.errors import DataError


class MissingObjectError(DataError):
    """The object is not there, while its store answered."""


class ObjectInfo(NamedTuple):
    """An object in a listing."""

    key: str
    bytes: int


class Storage(Protocol):
    """Objects under one root address. Instances may be shared by threads and can be pickled.

    Every method raises DataError for what is missing (MissingObjectError) or unreachable, naming
    address and key or the setting to mend, and StorageError for a refused write or a full disk.
    """

    address: str

    @property
    def activity(self) -> int:
        """A counter of requests and bytes, to tell slow from stuck; stays 0 without a network."""
        ...

    def read(self, key: str) -> bytes:
        """The whole object."""
        ...

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`; DataError where the object is shorter."""
        ...

    def write(self, key: str, data: bytes) -> None:
        """Publish an object from memory."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Publish an object unless its name is taken; whether it did.

        Stores that ignore conditional writes let two that race both succeed.
        """
        ...

    def writer(self, key: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """A stream that is published under `key` on a clean exit and leaves nothing otherwise.

        The data passes through a file, never whole through memory.
        """
        ...

    def upload(self, key: str, path: Path) -> None:
        """Publish a local file, in bounded memory."""
        ...

    def download(self, key: str, path: Path) -> None:
        """Copy an object to a local file, atomically and in bounded memory."""
        ...

    def exists(self, key: str) -> bool:
        """Whether the object is there; an absent bucket or folder counts as absent."""
        ...

    def size(self, key: str) -> int:
        """Bytes of the object."""
        ...

    def known_checksum(self, key: str) -> str:
        """The CRC-64/NVME that the store itself has computed of the object, 16 hex digits; empty
        where it keeps none."""
        ...

    def tag(self, key: str) -> str:
        """What changes whenever the object does: the store's entity tag, else the time of change
        where that is some seconds past; empty: there is none."""
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with `prefix`, in key order; none in an absent folder."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; no error where it is absent."""
        ...

    def delete_folder(self, folder: str) -> None:
        """Remove every object below `folder`; no error where there is none."""
        ...

    def remove_leftovers(self, is_ours: Callable[[str], bool] = lambda _: True) -> int:
        """Remove what killed writers left behind (never visible as objects); how many.

        Args:
            is_ours: of the key that was to be written; what others are writing is left alone.
        """
        ...


def check_key(key: str) -> str:
    """The key itself; ValueError where it could leave its root."""
    parts = key.split("/")
    if not key or key.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"bad object key {key!r}")
    return key
