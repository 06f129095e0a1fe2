"""Where the members of a tar are, from its headers alone: hostile or broken tars end it early.

Nothing is ever extracted by name: links, devices and odd names can do no harm. A stock tarfile walk
costs more than decoding a small image.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

ReadAt = Callable[[int, int], bytes]
"""Bytes from a position, of a length; fewer at the end."""

_BLOCK = 512
_RECORD_BYTES = 20 * _BLOCK
"""Tars are filled up to whole records, by some programs with anything."""
_WINDOW_BYTES = 1 << 20
_REGULAR = b"0\0"
_LONG_NAME, _PAX, _PAX_GLOBAL = b"L", b"x", b"g"
_MAX_EXTENDED_BYTES = 1 << 20


class TarDamageError(ValueError):
    """The tar cannot be read beyond what was found; the message says where and why."""


class Member(NamedTuple):
    """A regular file in a tar."""

    name: str
    start: int
    """Of its first header."""
    offset: int
    """Of its data."""
    size: int

    @property
    def end(self) -> int:
        """Where the next header is."""
        return self.offset + -(-self.size // _BLOCK) * _BLOCK


def list_members(data: bytes, *, trusted: bool = False) -> list[Member]:
    """Regular files of a tar in memory, which has to have its end marker.

    Args:
        data: the whole tar.
        trusted: see `walk_members`.

    Raises:
        TarDamageError: as `walk_members`, and a missing end marker.
    """

    def read(position: int, length: int) -> bytes:
        return data[position : position + length]

    return list(walk_members(read, 0, len(data), trusted=trusted, needs_end=True))


def walk_members(
    read: ReadAt, begin: int, end: int, *, trusted: bool = False, needs_end: bool = False
) -> Iterator[Member]:
    """Regular files of the tar in bytes `begin` to `end`.

    Args:
        read: gives bytes of what holds the tar.
        begin: where the tar starts.
        end: where it ends.
        trusted: leave out the headers' own checksums, because that of the tar is right.
        needs_end: whether a missing end marker is damage, and anything behind it.

    Raises:
        TarDamageError: no header where one should be, or a member beyond the end.
    """
    position, first = begin, begin
    name, long_size = "", -1
    while position + _BLOCK <= end:
        header = read(position, _BLOCK)
        if header[:1] == b"\0" and not header.strip(b"\0"):
            if needs_end:
                _check_rest(read, position, end)
            return
        size, kind = _parse(header, position, trusted)
        data = position + _BLOCK
        if long_size >= 0 and kind not in (_LONG_NAME, _PAX):
            size = long_size
        if data + size > end:
            raise TarDamageError(f"the tar breaks off at byte {end}, inside a member")
        if kind in (_LONG_NAME, _PAX):
            name, long_size = _extended(read, kind, data, size, (name, long_size))
        elif kind != _PAX_GLOBAL:
            if kind in _REGULAR:
                yield Member(name or _name(header), first, data, size)
            name, long_size = "", -1
        position = data + -(-size // _BLOCK) * _BLOCK
        if kind not in (_LONG_NAME, _PAX):
            first = position
    if begin == end and needs_end:
        raise TarDamageError("the tar breaks off at its beginning: it has 0 bytes")
    if position != end or needs_end:
        raise TarDamageError(f"the tar breaks off at byte {end}: it has no end marker")


def _check_rest(read: ReadAt, position: int, end: int) -> None:
    """Raise TarDamageError where more than a record's padding stands behind the end marker."""
    if end - position <= _RECORD_BYTES:
        return
    for start in range(position, end, _WINDOW_BYTES):
        if read(start, min(_WINDOW_BYTES, end - start)).strip(b"\0"):
            raise TarDamageError(
                f"the tar ends at byte {position}, and {end - position} bytes stand behind that: "
                "were two tars joined?"
            )


def _parse(header: bytes, position: int, trusted: bool) -> tuple[int, bytes]:
    """Size and type flag of a header whose checksum is right, or trusted."""
    if len(header) < _BLOCK:
        raise TarDamageError(f"the tar breaks off at byte {position}")
    try:
        size = _number(header[124:136])
        stated = 0 if trusted else _number(header[148:156])
    except ValueError:
        raise TarDamageError(f"no tar header at byte {position}") from None
    right = trusted or stated == sum(header[:148]) + sum(header[156:]) + 8 * 32
    if size < 0 or not right:
        raise TarDamageError(f"a damaged tar header at byte {position}")
    return size, header[156:157]


def _number(field: bytes) -> int:
    """Octal digits, or base 256 where the first bit is set."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big", signed=True) & ((1 << (8 * len(field) - 1)) - 1)
    return int(field.strip(b" \0") or b"0", 8)


def _name(header: bytes) -> str:
    name = header[:100].partition(b"\0")[0]
    if header[345] and header[257:263] == b"ustar\0":
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    # Two names that are no UTF-8 stay two.
    return name.decode(errors="backslashreplace")


def _extended(
    read: ReadAt, kind: bytes, position: int, size: int, known: tuple[str, int]
) -> tuple[str, int]:
    """Name and size that extended headers give to the next member; -1: no size."""
    if size > _MAX_EXTENDED_BYTES:
        raise TarDamageError(f"an extended header of {size} bytes at byte {position}")
    data = read(position, size)
    if kind == _LONG_NAME:
        return data.split(b"\0")[0].decode(errors="backslashreplace"), known[1]
    name, long_size = known
    for line in data.split(b"\n"):
        key, _, value = line.partition(b" ")[2].partition(b"=")
        if key == b"path":
            name = value.decode(errors="backslashreplace")
        elif key == b"size" and value.isdigit() and len(value) < 19:
            long_size = int(value)
    return name, long_size
