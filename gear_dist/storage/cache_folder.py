"""The user's cache folder: what can be recreated, and whether it is safe to take from there."""

import os
import stat
from pathlib import Path

from gear_dist.errors import StorageError

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def cache_folder() -> Path:
    """Where this user's machine keeps what can be recreated; perhaps not there yet."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "gear-dist"


def make_cache_folder(folder: Path) -> str:
    """Make the cache folder or one below it, closed to others; see `find_intruder`.

    Returns:
        Why nothing may be taken from there or put there; empty: it is safe.

    Raises:
        StorageError: there is no such folder, and none can be made.
    """
    top = cache_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part in (folder, *folder.parents):
            found = part.stat()
            # Left by a generous umask: what others have put there meanwhile is theirs, and shows.
            if found.st_uid == os.geteuid() and found.st_mode & _WRITABLE_BY_OTHERS:
                part.chmod(stat.S_IMODE(found.st_mode) & ~_WRITABLE_BY_OTHERS)
            if part == top:
                break
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror or error}") from None
    return find_intruder(folder)


def find_intruder(path: Path) -> str:
    """Who else could have written a file: its own and its folders' owner and mode, links followed.

    Trusted are this user and root. In a folder that everybody may write to but whose sticky bit is
    set (/tmp), nobody replaces what is another's.

    Returns:
        What is wrong and how to mend it; empty: nobody else.
    """
    real = path.resolve()
    for part in (real, *real.parents):
        try:
            found = part.lstat()
        except OSError as error:
            return f"{part}: {error.strerror or error}"
        if found.st_uid not in (0, os.geteuid()):
            return f"{part} belongs to another user (uid {found.st_uid}): remove it"
        sticky_folder = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
        if found.st_mode & _WRITABLE_BY_OTHERS and not sticky_folder:
            return f"other users may write to {part}: run `chmod go-w {part}`"
    return ""
