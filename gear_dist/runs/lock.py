"""One command at a time in a run folder."""

import contextlib
import datetime
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from gear_dist.errors import ConfigError, StorageError

_TAKEN = (errno.EACCES, errno.EAGAIN)


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold a run folder for the block. The lock is the kernel's: it goes with the process.

    Held by the command, not by its workers, of which old ones may linger on a lost node. Where the
    file system knows no locks, nothing is held.

    Raises:
        ConfigError: another command holds it.
        StorageError: the folder's parent cannot be written.
    """
    path = folder.parent / f".{folder.name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise StorageError(f"run.root={folder.parent}: {error.strerror}") from None
    with file:
        if _take(file.fileno()):
            file.truncate(0)
            since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
            file.write(f"process {os.getpid()} on {socket.gethostname()}, since {since}")
            file.flush()
            yield
            return
        file.seek(0)
        raise ConfigError(
            f"{folder} is in use by another command ({file.read() or 'unknown'}): wait for it or "
            "stop it, or set another run.name"
        )


def is_abandoned(folder: Path) -> bool:
    """Whether the run folder was locked before and its process is gone."""
    path = folder.parent / f".{folder.name}.lock"
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # held, never held, or a file system without locks
        return False
    return True


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _TAKEN
    return True
