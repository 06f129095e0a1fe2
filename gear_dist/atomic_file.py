"""Files that appear whole or not at all, and disk failures as one line a user can act on."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gear_dist.errors import StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def disk_errors(path: Path, setting: str = "run.root") -> Iterator[None]:
    """Turn an OSError of the block into a StorageError that names `path` and the fix.

    Args:
        path: what the block writes; named where the OSError names no file.
        setting: the setting that moves the file elsewhere.

    Raises:
        StorageError: full disk, missing permission, a file where a folder is needed, or another
            failure of the operating system.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(_explain(error, path, setting)) from error


def _explain(error: OSError, path: Path, setting: str) -> str:
    where = path if error.filename is None else error.filename
    if error.errno in _FULL:
        return (
            f"{where}: the disk is full ({error.strerror}); free space there, or set {setting} to "
            "a folder on another disk, and run the same command again"
        )
    if error.errno in _REFUSED:
        return f"{where}: not writable ({error.strerror}); set {setting} to a folder you may write"
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"{where}: a file is where a folder is needed; move it or set another {setting}"
    return f"{where}: {error.strerror or error}"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` and publish it under that name if the block succeeds.

    The data is on disk before the name points to it, so that a crash of the machine leaves the
    old file or the new one. If the block fails, nothing stays behind.

    Raises:
        StorageError: the disk refuses (see `disk_errors`).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        with disk_errors(path):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replace the contents of `path` (text as UTF-8); see `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
