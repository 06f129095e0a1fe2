"""What a test holds an error to: type, exit code and what a user needs, not the words between.

A user needs the setting, the value, the file, and the setting or command that mends it. The
English around them may then be mended without a test in the way.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

from gear_dist.errors import ConfigError, DataError, NumericError, StorageError, UserError

Kind = TypeVar("Kind", bound=Exception)

# Scripts of users tell the kinds of error by these numbers.
EXIT_CODES = {UserError: 1, ConfigError: 2, DataError: 3, NumericError: 4, StorageError: 5}


@contextmanager
def refused(kind: type[Kind], *needles: object) -> Iterator[pytest.ExceptionInfo[Kind]]:
    """Passes if the block raises `kind` itself, in one line of plain text that has every needle.

    A subclass is not enough: its callers tell it from its parent. A needle is found as a word or
    number of its own, so that 1 is not in 16, `data.train` not in `data.trained`, and a word not in
    the name of the temporary folder that pytest makes of the test's name. Where no setting, value
    or file tells two cases of a kind apart, one needle is the word for the concept.

    Raises:
        AssertionError: The block raises another exception of the kind, or its message lacks a
            needle.
    """
    with pytest.raises(kind) as caught:
        yield caught
    error, message = caught.value, str(caught.value)
    if type(error) is not kind:
        raise AssertionError(f"{type(error).__name__} in place of {kind.__name__}: {message}")
    if isinstance(error, UserError):
        code = next(EXIT_CODES[parent] for parent in kind.__mro__ if parent in EXIT_CODES)
        if error.exit_code != code:
            raise AssertionError(f"{kind.__name__} ends with {error.exit_code}, not {code}")
    if not (message and message.isprintable()):
        raise AssertionError(f"not one line of plain text: {message!r}")
    lacking = [str(needle) for needle in needles if not has_word(message, str(needle))]
    if lacking:
        raise AssertionError(f"{', '.join(map(repr, lacking))} not in: {message}")


def has_word(message: str, needle: str) -> bool:
    """Whether the needle is there, and neither end of it inside a longer word."""
    before = r"(?<!\w)" if re.match(r"\w", needle) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", needle) else ""
    return re.search(before + re.escape(needle) + after, message) is not None
