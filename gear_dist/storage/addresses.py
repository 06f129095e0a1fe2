"""Addresses as users give them, taken apart and put together in one place. No torch."""

import re
from typing import NamedTuple
from urllib.parse import unquote

from gear_dist.errors import ConfigError
from gear_dist.redaction import redact_text

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_MISTYPED = re.compile(r"(s3|gs|gcs|file|https?|hdfs|az)(:|//)", re.IGNORECASE)
"""A scheme whose colon or slashes are wrong, which would be a folder of that name."""
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")
_FORMS = "use s3://BUCKET/PREFIX, file:///FOLDER or a path"


class Address(NamedTuple):
    """Where something is."""

    bucket: str
    """Of an object store; empty: `path` is of this machine."""
    path: str
    """A prefix without slashes at its ends, or the path of a file or folder."""

    def __str__(self) -> str:
        if not self.bucket:
            return self.path
        return f"s3://{self.bucket}" + (f"/{self.path}" if self.path else "")


def parse_address(text: str, what: str = "") -> Address:
    """The parts of an address; whether anything is there is another question.

    Args:
        text: `s3://bucket/prefix`, `file:///folder`, or a path.
        what: the setting or argument that holds it, for the message.

    Raises:
        ConfigError: it is empty, of another scheme, or names no bucket or folder.
    """
    shown = redact_text(text)
    named = f"{what}: {shown!r}" if what else repr(shown)
    if not text.strip():
        raise ConfigError(f"{named} is an empty address: {_FORMS}")
    if text != text.strip():
        raise ConfigError(f"{named} starts or ends with whitespace: {_FORMS}")
    found = _SCHEME.fullmatch(text)
    if found is None and _MISTYPED.match(text):
        raise ConfigError(f"{named} is neither a path nor an address: {_FORMS}")
    if found is None:
        return Address("", text)
    scheme, rest = found[1].lower(), found[2]
    if scheme == "s3":
        bucket, _, prefix = rest.partition("/")
        if not _BUCKET.fullmatch(bucket):
            raise ConfigError(f"{named} names no bucket: {_FORMS}")
        prefix = prefix.rstrip("/")
        if prefix and {"", ".", ".."} & set(prefix.split("/")):
            raise ConfigError(f"{named} has an empty path component, or `.` or `..`: {_FORMS}")
        return Address(bucket, prefix)
    if scheme == "file":
        if not rest.startswith("/"):
            raise ConfigError(f"{named}: use file:///ABSOLUTE/FOLDER, with three slashes")
        return Address("", unquote(rest))
    raise ConfigError(f"{named} has the unknown scheme {found[1]}://: {_FORMS}")


def join_address(address: str, name: str, what: str = "") -> str:
    """The address of `name` below another address.

    Raises:
        ConfigError: see `parse_address`.
    """
    parsed = parse_address(address, what)
    return f"{parsed}{'' if parsed.path.endswith('/') else '/'}{name}"


def split_address(address: str, what: str = "") -> tuple[str, str]:
    """The address that holds another one, and the latter's name in it.

    Raises:
        ConfigError: see `parse_address`; or nothing holds it, as with a bucket.
    """
    parsed = parse_address(address, what)
    parent, slash, name = parsed.path.rstrip("/").rpartition("/")
    if not name or name in (".", ".."):
        named = f"{what}: {address}" if what else address
        raise ConfigError(f"{named} is not a folder inside another one, as needed here")
    return str(parsed._replace(path=parent or ("" if parsed.bucket else slash or "."))), name
