"""Paths as users give them. No torch."""

import errno
import os
from pathlib import Path

from gear_dist.errors import ConfigError
from gear_dist.redaction import redact_text
from gear_dist.storage.addresses import parse_address


def local_path(text: str | Path, what: str = "") -> Path:
    """A path that the system can have, also of file://; whether anything is there is open.

    Empty text is refused, because to Python it is the working folder.

    Args:
        what: the setting that names it, for the message.

    Raises:
        ConfigError: it is empty, an address of an object store, holds NUL or what is no text, or is
            longer than names may be.
    """
    named = f"{what}=" if what else ""
    address = os.fspath(text)
    if not address:
        raise ConfigError(f"{named}'' is empty: name a file or folder")
    bucket, name = parse_address(address, what)
    if bucket:
        raise ConfigError(
            f"{named}{redact_text(address)} is an object store's address, where only a path of "
            "this machine (or of a file system that it shares) works: give a path"
        )
    try:
        os.lstat(name)
    except (ValueError, UnicodeEncodeError):
        raise ConfigError(f"{named}{name!r} holds characters that no path may have") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ConfigError(f"{named}{name!r} is longer than a path may be") from None
    return Path(name)


def expand_user(path: Path) -> Path:
    """A path with `~` and `~name` replaced.

    Raises:
        ConfigError: there is no such user.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise ConfigError(f"{path}: there is no user {path.parts[0][1:]} here") from None
