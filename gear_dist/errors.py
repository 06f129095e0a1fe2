"""Errors that a user can act on, each with the exit code that `gear-dist` ends with."""

import re


class UserError(Exception):
    """An error whose one-line message names the setting or file and the fix; shown bare."""

    exit_code = 1


class ConfigError(UserError, ValueError):
    """A setting is misspelt, of the wrong type, or impossible."""

    exit_code = 2


class DataError(UserError):
    """Data is unreachable, malformed or inconsistent with its manifest."""

    exit_code = 3


class NumericError(UserError):
    """A loss or gradient is no longer finite, or training continues and learns nothing."""

    exit_code = 4


class StorageError(UserError):
    """A disk or object store refuses a read or write that the run cannot do without."""

    exit_code = 5


_LONG_WORD = re.compile(r"\S{600,}")


def one_line(error: Exception | str) -> str:
    """A message as it may be shown: no control characters, no word that fills the screen."""
    shown = _LONG_WORD.sub(lambda word: f"{word[0][:200]}...{word[0][-100:]}", str(error).strip())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


EXIT_DONE = 0
EXIT_INTERRUPTED = 75
