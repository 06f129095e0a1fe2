"""A deterministic tar: no times, no owners, its checksum ready when its last byte is."""

from typing import BinaryIO

from gear_dist.storage.checksums import Crc64

_BLOCK = 512
SAMPLE_OVERHEAD_BYTES = 4 * 2 * _BLOCK
"""Headers and padding of a sample's four members, at most."""


class TarWriter:
    """A ustar stream that sums up what it writes."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._checksum = Crc64()
        self.position = 0

    def add(self, name: str, data: bytes) -> int:
        """Append a member; the offset of its data."""
        self._write(_header(name, len(data)))
        offset = self.position
        self._write(data)
        if padding := -len(data) % _BLOCK:
            self._write(b"\0" * padding)
        return offset

    def finish(self) -> str:
        """Write the end marker; the tar's CRC-64/NVME, 16 hex digits."""
        self._write(b"\0" * 2 * _BLOCK)
        return self._checksum.hexdigest()

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._checksum.update(data)
        self.position += len(data)


def _header(name: str, size: int) -> bytes:
    """A ustar header: mode 0644, owner and times 0."""
    header = bytearray(_BLOCK)
    header[: len(name)] = name.encode()
    header[100:124] = b"0000644\0" + b"0000000\0" * 2
    header[124:148] = b"%011o\0" % size + b"%011o\0" % 0
    header[148:156] = b" " * 8
    header[156:157] = b"0"
    header[257:265] = b"ustar\00000"
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)
