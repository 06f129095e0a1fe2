"""A folder behind the `Storage` interface."""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from gear_dist.errors import DataError
from gear_dist.storage.atomic import (
    TEMPORARY_SUFFIX,
    atomic_file,
    copy_file,
    refuse_write,
    remove_abandoned,
    remove_file,
    write_file,
)
from gear_dist.storage.base import MissingObjectError, ObjectInfo, check_key
from gear_dist.storage.paths import expand_user


class FileStorage:
    """A folder with the semantics of an object store."""

    activity = 0

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(expand_user(root)))
        self.address = self.root.as_uri()

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def read(self, key: str) -> bytes:
        with self._reading(key), open(self._path(key), "rb") as stream:
            return stream.read()

    def read_range(self, key: str, start: int, length: int) -> bytes:
        with self._reading(key), open(self._path(key), "rb") as stream:
            stream.seek(start)
            data = stream.read(length)
        if len(data) != length:
            raise DataError(
                f"{self._path(key)}: bytes {start} to {start + length} are beyond its end"
            )
        return data

    def write(self, key: str, data: bytes) -> None:
        write_file(self._path(key), data)

    def create(self, key: str, data: bytes) -> bool:
        created = True

        def link(temporary: Path, path: Path) -> None:
            nonlocal created
            try:
                os.link(temporary, path)
            except FileExistsError:
                created = False
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
                    raise
                os.replace(temporary, path)  # a file system without hard links
                return
            temporary.unlink()

        with atomic_file(self._path(key), publish=link) as stream:
            stream.write(data)
        return created

    def writer(self, key: str) -> contextlib.AbstractContextManager[BinaryIO]:
        return atomic_file(self._path(key))

    def upload(self, key: str, path: Path) -> None:
        copy_file(path, self._path(key))

    def download(self, key: str, path: Path) -> None:
        with self._reading(key):
            copy_file(self._path(key), path)

    def exists(self, key: str) -> bool:
        with self._reading(key):
            return self._path(key).is_file()

    def size(self, key: str) -> int:
        with self._reading(key):
            return self._path(key).stat().st_size

    def known_checksum(self, key: str) -> str:
        return ""

    def tag(self, key: str) -> str:
        return ""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        found = []
        # Only the folder part of the prefix is walked: the root may hold far more.
        for folder, _, names in os.walk(self.root / prefix.rpartition("/")[0], onerror=_unlisted):
            for name in names:
                path = Path(folder, name)
                key = path.relative_to(self.root).as_posix()
                if key.startswith(prefix) and not name.endswith(TEMPORARY_SUFFIX):
                    # Removed since, or a link to nothing.
                    with contextlib.suppress(MissingObjectError):
                        found.append(ObjectInfo(key, self.size(key)))
        yield from sorted(found)

    def delete(self, key: str) -> None:
        try:
            remove_file(self._path(key))
        except OSError as error:
            refuse_write(self._path(key), error)

    def delete_folder(self, folder: str) -> None:
        try:
            shutil.rmtree(self._path(folder))
        except FileNotFoundError:
            pass
        except OSError as error:
            refuse_write(self._path(folder), error)

    def remove_leftovers(self, is_ours: Callable[[str], bool] = lambda _: True) -> int:
        found = self.root.rglob(f".*{TEMPORARY_SUFFIX}")
        return sum(remove_abandoned(path) for path in found if is_ours(self._written_key(path)))

    def _written_key(self, temporary: Path) -> str:
        """The key that a temporary file was to become."""
        name = temporary.name[1:].removesuffix(TEMPORARY_SUFFIX).rsplit(".", 2)[0]
        return (temporary.parent / name).relative_to(self.root).as_posix()

    @contextlib.contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        path = self._path(key)
        try:
            yield
        except (FileNotFoundError, NotADirectoryError):
            raise MissingObjectError(f"{path}: no such file") from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _unlisted(error: OSError) -> None:
    """A folder that is there and cannot be listed is not an empty one."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        reason = error.strerror or error
        raise DataError(f"{error.filename}: cannot be listed: {reason}") from None
