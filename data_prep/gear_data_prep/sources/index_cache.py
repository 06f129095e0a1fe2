"""Indexes of remote tars, kept between runs in the user's cache folder.

Reading the headers of a remote tar amounts to reading most of it, so a run that is continued should
not do it again. An index belongs to one version of one object, by the store's entity tag, else by
size and time of change; of what has just changed, and of local files, nothing is kept. Nothing is
taken from a folder that others may write to.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from gear_data_prep.sources.files import SourceFile, is_remote
from gear_dist.errors import StorageError
from gear_dist.storage.atomic import write_file
from gear_dist.storage.cache_folder import cache_folder, make_cache_folder

_VERSION = 3
_DIGEST_BYTES = 16
MAX_BYTES = 1 << 30
"""The oldest indexes go when all of them take more."""


def remember(file: SourceFile, what: str, make: Callable[[], Any]) -> Any:
    """The index of a tar, made unless it is known.

    Args:
        file: the tar.
        what: all that the index depends on besides the tar.
        make: makes it; the result is JSON.
    """
    tag = file.storage.tag(file.key) if is_remote(file.storage) else ""
    if not tag:
        return make()
    words = (str(_VERSION), file.storage.address, file.key, str(file.bytes), tag, what)
    name = hashlib.sha256("\0".join(words).encode(errors="surrogateescape")).hexdigest()
    path = cache_folder() / "tar-index" / name
    private = _is_private(path.parent)
    found = _load(path) if private else None
    if found is None:
        found = make()
        if private:
            _save(path, found)
    return found


def _is_private(folder: Path) -> bool:
    try:
        return not make_cache_folder(folder)
    except StorageError:
        return False  # a machine without room for it does the work again


def _load(path: Path) -> Any:
    """What was saved; None where there is nothing, or it is damaged."""
    try:
        data = path.read_bytes()
        os.utime(path)  # the oldest are those unused for longest
        body = data[_DIGEST_BYTES:]
        if xxhash.xxh3_128_digest(body) != data[:_DIGEST_BYTES]:
            return None
        return json.loads(zlib.decompress(body))
    except (OSError, ValueError, zlib.error):
        return None


def _save(path: Path, node: Any) -> None:
    body = zlib.compress(json.dumps(node, separators=(",", ":")).encode(), 1)
    try:
        write_file(path, xxhash.xxh3_128_digest(body) + body, 0o600)
        _prune(path.parent)
    except (StorageError, OSError):
        return


def _prune(folder: Path) -> None:
    found = sorted((status.st_mtime, status.st_size, path) for path, status in _entries(folder))
    total = sum(size for _, size, _ in found)
    for _, size, path in found:
        if total <= MAX_BYTES:
            return
        path.unlink(missing_ok=True)
        total -= size


def _entries(folder: Path) -> list[tuple[Path, os.stat_result]]:
    return [(Path(entry.path), entry.stat()) for entry in os.scandir(folder)]
