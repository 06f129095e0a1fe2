"""One interface to folders (file://) and object stores (s3://). No torch.

A `Storage` is a root address under which objects have keys such as `shards/000000.tar`. Writes
are atomic on both: an object appears whole, under its final name, or not at all.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn, Protocol

from gear_dist.errors import DataError, StorageError
from gear_dist.storage.addresses import parse_address
from gear_dist.storage.checksums import Crc64
from gear_dist.storage.paths import expand_user, local_path

COPY_BYTES = 1 << 20
_WINDOW_BYTES = 8 << 20
_TEMPORARY_SUFFIX = ".gear-part"
_STALE_SECONDS = 24 * 3600


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
        """Grows with each request and what comes of it, for who must tell slow from stuck; stays 0
        where no network is in between."""
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


def checksum_of(storage: Storage, key: str, *, trust_store: bool = True) -> str:
    """The CRC-64/NVME of an object, 16 hex digits, in bounded memory.

    Args:
        storage: where it is.
        key: its name.
        trust_store: whether a checksum that the store has computed saves the download.

    Raises:
        DataError: missing or unreachable.
    """
    if trust_store and (known := storage.known_checksum(key)):
        return known
    checksum = Crc64()
    for start, length in _windows(storage.size(key)):
        checksum.update(storage.read_range(key, start, length))
    return checksum.hexdigest()


def _windows(size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, _WINDOW_BYTES):
        yield start, min(_WINDOW_BYTES, size - start)


def check_key(key: str) -> str:
    """The key itself; ValueError where it could leave its root."""
    parts = key.split("/")
    if not key or key.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"bad object key {key!r}")
    return key


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
        StorageError: the disk is full or refuses the write.
    """
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
            _remove(temporary)
        if isinstance(error, OSError):
            _refuse_write(path, error)
        raise


def _open_temporary(path: Path, mode: int) -> tuple[Path, int]:
    """A new locked file beside `path`: its name and descriptor.

    Between its making and its locking it looks abandoned. Who tidies then removes it under the
    lock, so a file that has no name left once it is locked is made again.
    """
    while True:
        name = f".{path.name}.{_host()}.{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}"
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
        _refuse_write(path, error)


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
                if key.startswith(prefix) and not name.endswith(_TEMPORARY_SUFFIX):
                    # Removed since, or a link to nothing.
                    with contextlib.suppress(MissingObjectError):
                        found.append(ObjectInfo(key, self.size(key)))
        yield from sorted(found)

    def delete(self, key: str) -> None:
        try:
            _remove(self._path(key))
        except OSError as error:
            _refuse_write(self._path(key), error)

    def delete_folder(self, folder: str) -> None:
        try:
            shutil.rmtree(self._path(folder))
        except FileNotFoundError:
            pass
        except OSError as error:
            _refuse_write(self._path(folder), error)

    def remove_leftovers(self, is_ours: Callable[[str], bool] = lambda _: True) -> int:
        found = self.root.rglob(f".*{_TEMPORARY_SUFFIX}")
        return sum(_remove_abandoned(path) for path in found if is_ours(self._written_key(path)))

    def _written_key(self, temporary: Path) -> str:
        """The key that a temporary file was to become."""
        name = temporary.name[1:].removesuffix(_TEMPORARY_SUFFIX).rsplit(".", 2)[0]
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


def _remove_abandoned(path: Path) -> bool:
    """Remove a temporary file whose writer is gone: by its lock, or for other machines a day.

    The lock ends with its writer, however that ends.
    """
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as stream:
        old = time.time() - os.fstat(stream.fileno()).st_mtime > _STALE_SECONDS
        here = path.name.removesuffix(_TEMPORARY_SUFFIX).split(".")[-2] == _host()
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


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        path.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_write(path: Path, error: OSError) -> NoReturn:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise StorageError(f"{path}: the disk is full; free some space and run again") from None
    raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from None
