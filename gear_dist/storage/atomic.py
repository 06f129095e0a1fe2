"""Files of this machine that appear whole or not at all, and what killed writers left."""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

from gear_dist.errors import DataError, StorageError

COPY_BYTES = 1 << 20
TEMPORARY_SUFFIX = ".gear-part"
_STALE_SECONDS = 24 * 3600


@contextlib.contextmanager
def atomic_file(
    path: Path, mode: int = 0o666, *, publish: Callable[[Path, Path], None] = os.replace
) -> Iterator[BinaryIO]:
    """A new file that replaces `path` whole on a clean exit: temporary name in the same folder,
    fsync, rename. On an error the temporary file is removed and `path` is as before.

    Args:
        path: the file; its folder is made where absent.
        mode: permissions of the new file, less the umask.
        publish: gives the finished temporary file its name.

    Raises:
        StorageError: the disk is full or refuses the write, or a device or pipe is in its place.
    """
    _refuse_special(path)
    temporary = path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, descriptor = _open_temporary(path, mode)
        with open(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            # Still locked: once it is not, whoever tidies takes it for abandoned.
            publish(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        if temporary != path:
            remove_file(temporary)
        if isinstance(error, OSError):
            refuse_write(path, error)
        raise


def _refuse_special(path: Path) -> None:
    """A rename would put the file in the place of a device: as root, /dev/null itself."""
    try:
        mode = path.lstat().st_mode
    except (OSError, ValueError):
        return  # the write says what is wrong, if anything is
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
        raise StorageError(f"{path}: is a device or pipe, not a file: name a file")


def _open_temporary(path: Path, mode: int) -> tuple[Path, int]:
    """A new locked file beside `path`: its name and descriptor.

    Between its making and its locking it looks abandoned. Who tidies then removes it under the
    lock, so a file that has no name left once it is locked is made again.
    """
    while True:
        name = f".{path.name}.{_host()}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
        temporary = path.parent / name
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with contextlib.suppress(OSError):  # file systems without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink > 0:
            return temporary, descriptor
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a local folder with its parents; no error where it is there.

    Raises:
        StorageError: the disk refuses, or a file is in the way.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        refuse_write(path, error)


def write_file(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Publish a local file atomically; see `atomic_file`."""
    with atomic_file(path, mode) as stream:
        stream.write(data)


def write_text(path: Path, text: str) -> None:
    """Publish a page for people as UTF-8; names in it that are no text are escaped.

    Raises:
        StorageError: see `atomic_file`.
    """
    write_file(path, text.encode(errors="backslashreplace"))


def copy_file(source: Path, target: Path) -> None:
    """Copy a file atomically in bounded memory; DataError where the source cannot be read."""
    try:
        reader = open(source, "rb")  # noqa: SIM115 - errors of the two files are told apart
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror}") from None
    with reader, atomic_file(target) as writer:
        shutil.copyfileobj(reader, writer, COPY_BYTES)


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def remove_abandoned(path: Path) -> bool:
    """Remove a temporary file whose writer is gone: by its lock, or for other machines a day.

    The lock ends with its writer, however that ends.
    """
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as stream:
        old = time.time() - os.fstat(stream.fileno()).st_mtime > _STALE_SECONDS
        here = path.name.removesuffix(TEMPORARY_SUFFIX).split(".")[-2] == _host()
        if old or (here and _try_lock(stream.fileno())):
            path.unlink()
            return True
    return False


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def remove_file(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        path.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_write(path: Path, error: OSError) -> NoReturn:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise StorageError(f"{path}: the disk is full; free some space and run again") from None
    raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from None
