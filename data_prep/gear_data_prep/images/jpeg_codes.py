"""Whether the codes of a baseline JPEG can be a picture's: what `jpeg_codes.c` finds."""

import ctypes
import enum
import functools

from gear_data_prep.images.native import ADVICE, load_native
from gear_dist.errors import ConfigError


class CodeFault(enum.IntEnum):
    """What was found first, in the order of the file."""

    CLEAN = 0
    """An ordinary file, and every code of it makes sense."""
    UNSURE = 1
    """Another kind of JPEG, or damage that a decoder sees better."""
    NO_CODE = 2
    BEYOND = 3
    TOO_LARGE = 4
    LEFT_OVER = 5


COMPLAINTS = {
    CodeFault.NO_CODE: "a code without a meaning",
    CodeFault.BEYOND: "a coefficient beyond the last one of its block",
    CodeFault.TOO_LARGE: "a coefficient that no picture has",
    CodeFault.LEFT_OVER: "bytes that no block needs",
}
"""What is wrong with a damaged picture."""


def can_read_codes() -> bool:
    """Whether the compiled function is here."""
    return _library() is not None


def read_codes(data: bytes) -> CodeFault:
    """Read all codes of a JPEG, at a few nanoseconds each, in memory of the file's size.

    Raises:
        ConfigError: the package was installed without it.
    """
    library = _library()
    if library is None:
        raise ConfigError(
            "this corpus was planned where JPEG codes could be read, which takes compiled code: "
            f"{ADVICE}"
        )
    return CodeFault(library.gear_scan_jpeg(data, ctypes.c_int64(len(data))))


@functools.cache
def _library() -> ctypes.CDLL | None:
    return load_native("jpeg_codes")
