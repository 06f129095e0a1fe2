"""The C files of this package, compiled when it was installed; at run time nothing is compiled."""

import ctypes
import functools
from pathlib import Path

from gear_dist.native import ADVICE, EXTENSION_SUFFIXES, load_library

__all__ = ["ADVICE", "EXTENSION_SUFFIXES", "load_native"]


@functools.cache
def load_native(name: str) -> ctypes.CDLL | None:
    """The functions of `NAME.c`; see `load_library`."""
    instead = "slower code does its work, and finds less damage in JPEGs"
    return load_library(Path(__file__).parent, name, instead)
