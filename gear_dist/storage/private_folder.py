"""Temporary folders that no other user can enter, removed even when their process was killed."""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from gear_dist.errors import StorageError

_LOCK = "lock"
# What is open to others lies in here: the folder itself stays closed to them, whoever opens it.
_INSIDE = "d"
SHORT_PARENT = Path("/tmp")


@contextlib.contextmanager
def private_folder(prefix: str, *, longest_parent: int | None = None) -> Iterator[Path]:
    """A folder below one with mode 0700 that is removed on leaving.

    Programs may open the folder that they are given to everyone (Ray does): nobody gets through
    the one above. That one holds a locked file, so the next start finds and removes what a killed
    process has left.

    Args:
        prefix: of the outer folder's name; its kind.
        longest_parent: characters that the temporary folder's path may have; a longer one is
            replaced by /tmp.

    Raises:
        StorageError: the temporary folder cannot be written.
    """
    parent = Path(tempfile.gettempdir())
    if longest_parent is not None and len(str(parent)) > longest_parent:
        parent = SHORT_PARENT
    _remove_abandoned(parent, prefix)
    try:
        folder, lock = _make(parent, prefix)
    except OSError as error:
        message = f"{parent}: cannot be written: {error.strerror or error}"
        raise StorageError(f"{message}; set TMPDIR to a folder with free space") from None
    try:
        with lock:
            yield folder / _INSIDE
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make(parent: Path, prefix: str) -> tuple[Path, IO[bytes]]:
    """A new folder and its locked file.

    Until it is locked a concurrent cleanup may delete it; then a new one is created.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with contextlib.suppress(FileNotFoundError):
            lock = open(folder / _LOCK, "xb")  # noqa: SIM115 - closed by the caller
            with contextlib.suppress(OSError):  # file systems without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / _INSIDE).mkdir(mode=0o700)
            if os.fstat(lock.fileno()).st_nlink > 0:
                return folder, lock
            lock.close()


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove this user's folders of that kind whose process is gone: nothing holds their lock."""
    for folder in parent.glob(f"{prefix}*"):
        # Another user's folder, or a link of that name, is none of ours.
        with contextlib.suppress(OSError):
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                continue
            with open(folder / _LOCK, "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
