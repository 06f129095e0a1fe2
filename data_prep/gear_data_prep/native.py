"""The C files of this package, compiled when first used and kept in the user's cache folder."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from gear_dist.errors import StorageError
from gear_dist.storage import write_file

_FLAGS = ("-O3", "-shared", "-fPIC")
_COMPILERS = ("cc", "gcc", "clang", "g++")
_COMPILE_SECONDS = 120


@functools.cache
def load_native(name: str) -> ctypes.CDLL | None:
    """The functions of `NAME.c`; None where no compiler is found, or it refuses.

    Several processes may compile at once: each publishes the same library atomically.
    """
    source = Path(__file__).with_name(f"{name}.c")
    library = cache_folder() / f"{name}-{_digest(source)}.so"
    found = _open(library)
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if found is not None or compiler is None:
        return found
    built = _compile(compiler, source)
    if built is None:
        return None
    try:
        write_file(library, built, 0o755)
    except StorageError:
        return _open_once(built)
    return _open(library)


def _digest(source: Path) -> str:
    parts = (source.read_bytes(), " ".join(_FLAGS).encode(), platform.machine().encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def cache_folder() -> Path:
    """Where this user's machine keeps what can be made again."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gear-dist"


def _compile(compiler: str, source: Path) -> bytes | None:
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
