"""The storage behind an address."""

import os

from gear_dist.storage.addresses import parse_address
from gear_dist.storage.base import Storage
from gear_dist.storage.local import FileStorage
from gear_dist.storage.paths import local_path


def open_storage(address: str, endpoint: str = "") -> Storage:
    """The storage behind an address; nothing is contacted yet.

    Args:
        address: `s3://bucket/prefix`, `file:///folder`, or a path.
        endpoint: S3 endpoint; empty: AWS_ENDPOINT_URL, else AWS itself. Ignored for folders.

    Raises:
        ConfigError: see `parse_address`.
    """
    parsed = parse_address(address)
    if not parsed.bucket:
        return FileStorage(local_path(parsed.path))
    from gear_dist.storage.s3 import S3Storage

    return S3Storage(str(parsed), endpoint)


def overlap(one: Storage, other: Storage) -> bool:
    """Whether two addresses are the same, or one is above the other."""
    a, b = _steps(one), _steps(other)
    length = min(len(a), len(b))
    return a[:length] == b[:length]


def _steps(storage: Storage) -> list[str]:
    """An address in its parts; of a folder without links, which would hide where it is."""
    if isinstance(storage, FileStorage):
        return ["file", *os.path.realpath(storage.root).strip("/").split("/")]
    return storage.address.split("/")
