"""Libraries of C files, compiled when a package was installed; at run time nothing is compiled."""

import ctypes
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

ADVICE = "install gear-dist again on a machine with a C compiler (gcc or clang)"


def load_library(folder: Path, name: str, instead: str) -> ctypes.CDLL | None:
    """The functions of `folder/NAME.c`, from the library beside it.

    None, with a warning, where the package was installed without a compiler or for another machine.

    Args:
        folder: of the C file.
        name: its name, without suffix.
        instead: what happens without it, for the warning.
    """
    for suffix in EXTENSION_SUFFIXES:
        library = folder / f"_{name}{suffix}"
        if library.is_file():
            try:
                return ctypes.CDLL(str(library))
            except OSError:
                break
    warnings.warn(f"{name}.c is not compiled here, so {instead}: {ADVICE}", stacklevel=4)
    return None
