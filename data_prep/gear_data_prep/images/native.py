"""The C files of this package, compiled when first used and kept in the user's cache folder."""

import contextlib
import ctypes
import functools
import hashlib
import platform
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

from gear_dist.errors import StorageError
from gear_dist.storage.atomic import write_file
from gear_dist.storage.cache_folder import cache_folder, find_intruder, make_cache_folder

_FLAGS = ("-O3", "-shared", "-fPIC")
_COMPILERS = ("cc", "gcc", "clang", "g++")
_COMPILE_SECONDS = 120


@functools.cache
def load_native(name: str) -> ctypes.CDLL | None:
    """The functions of `NAME.c`; None where no compiler is found, or it refuses.

    A library is taken from the cache folder only where nobody but this user and root can have
    written it; elsewhere it is compiled anew, and a warning says so. Several processes may compile
    at once: each publishes the same library atomically.
    """
    source = Path(__file__).with_name(f"{name}.c")
    library = cache_folder() / f"{name}-{_digest(source)}.so"
    refused, kept = "", True
    try:
        refused = make_cache_folder(library.parent)
        if not refused and library.exists():
            refused = find_intruder(library)
    except StorageError:
        kept = False
    kept = kept and not refused
    if kept and (found := _open(library)) is not None:
        return found
    built = _compile(source)
    if refused:
        _warn(refused, built is not None)
    if built is None:
        return None
    if kept:
        with contextlib.suppress(StorageError):
            write_file(library, built, 0o755)
            return _open(library)
    return _open_once(built)


def _warn(problem: str, compiled: bool) -> None:
    instead = "it is compiled for this process alone" if compiled else "the slower code runs"
    message = f"{problem}; nothing is loaded from there, {instead}"
    warnings.warn(f"{message} (XDG_CACHE_HOME sets another cache folder)", stacklevel=3)


def _digest(source: Path) -> str:
    parts = (source.read_bytes(), " ".join(_FLAGS).encode(), platform.machine().encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _compile(source: Path) -> bytes | None:
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory(prefix="gear-dist-") as folder:
        target = Path(folder) / "library.so"
        command = [compiler, "-x", "c", *_FLAGS, "-o", str(target), str(source)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_SECONDS)
        except (OSError, subprocess.SubprocessError):
            return None
        return target.read_bytes()


def _open_once(built: bytes) -> ctypes.CDLL | None:
    """For a machine without a cache folder: the library stays open without its file."""
    with tempfile.TemporaryDirectory(prefix="gear-dist-") as folder:
        library = Path(folder) / "library.so"
        library.write_bytes(built)
        return _open(library)


def _open(library: Path) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(library))
    except OSError:
        return None
