"""Errors that a user can act on, each with the exit code that `gear-dist` ends with."""


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
    """A loss or gradient is no longer finite, or training goes on and learns nothing."""

    exit_code = 4


class StorageError(UserError):
    """A disk or object store refuses a read or write that the run cannot do without."""

    exit_code = 5


EXIT_DONE = 0
EXIT_INTERRUPTED = 75
