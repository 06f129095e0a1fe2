"""The C files of this package, compiled when it was installed; at run time nothing is compiled."""

import ctypes
import functools
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

ADVICE = "install gear-dist again on a machine with a C compiler (gcc or clang)"


@functools.cache
def load_native(name: str) -> ctypes.CDLL | None:
    """The functions of `NAME.c`, from the library beside it.

    None, with a warning, where the package was installed without a compiler or for another machine.
    """
    for suffix in EXTENSION_SUFFIXES:
        library = Path(__file__).with_name(f"_{name}{suffix}")
        if library.is_file():
            try:
                return ctypes.CDLL(str(library))
            except OSError:
                break
    warnings.warn(
        f"{name}.c is not compiled here, so slower code does its work, and finds less damage in "
        f"JPEGs: {ADVICE}",
        stacklevel=3,
    )
    return None
