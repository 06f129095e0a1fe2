"""Shards on a local disk, up to a size limit. Safe between processes."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gear_dist.data.manifest import ShardInfo
from gear_dist.storage.base import MissingObjectError
from gear_dist.storage.local import FileStorage
from gear_dist.storage.paths import expand_user


class ShardCache:
    """A folder of shards by their checksum; the longest unused go first.

    A file appears whole or not at all, so readers need no lock; only tidying takes one.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Makes the folder and removes what killed writers left there.

        Raises:
            StorageError: the folder cannot be written.
        """
        self._folder = expand_user(folder).absolute()
        self._limit_bytes = limit_bytes
        self._files = FileStorage(self._folder)
        self._files.create(".lock", b"")  # never another file, whose lock would be another lock
        self._files.remove_leftovers()

    def holds(self, info: ShardInfo) -> bool:
        """Whether a shard is here."""
        return self._files.exists(_name(info))

    def read(self, info: ShardInfo) -> bytes | None:
        """The shard's bytes, unchecked; None where it is not here."""
        name = _name(info)
        try:
            data = self._files.read(name)
        except MissingObjectError:
            return None
        with suppress(OSError):
            os.utime(self._folder / name)
        return data

    def discard(self, info: ShardInfo) -> None:
        """Remove a shard whose bytes have changed."""
        self._files.delete(_name(info))

    def write(self, info: ShardInfo, data: bytes) -> None:
        """Keep a shard, and make room for it.

        Raises:
            StorageError: the disk is full or refuses the write.
        """
        if len(data) > self._limit_bytes:
            return
        self._make_room(len(data))
        self._files.write(_name(info), data)

    def _make_room(self, wanted: int) -> None:
        with self._locked():
            files = [(path.stat(), path) for path in self._folder.glob("*.tar")]
            total = sum(stat.st_size for stat, _ in files)
            for stat, path in sorted(files, key=lambda item: item[0].st_mtime_ns):
                if total + wanted <= self._limit_bytes:
                    return
                path.unlink(missing_ok=True)
                total -= stat.st_size

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self._folder / ".lock", "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def _name(info: ShardInfo) -> str:
    return f"{info.crc64nvme}-{info.bytes}.tar"
