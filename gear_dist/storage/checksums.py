"""CRC-64/NVME of shards, the checksum that S3 itself can keep; about 50 GB/s a core. No torch."""

from collections.abc import Iterator

from awscrt import checksums

from gear_dist.storage.base import Storage

_WINDOW_BYTES = 8 << 20


class Crc64:
    """A running CRC-64/NVME."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take in the next bytes."""
        self._value = checksums.crc64nvme(data, self._value)

    def hexdigest(self) -> str:
        """16 hex digits."""
        return f"{self._value:016x}"


def crc64nvme_hex(data: bytes | bytearray | memoryview) -> str:
    """16 hex digits of the CRC-64/NVME of some bytes."""
    return f"{checksums.crc64nvme(data):016x}"


def checksum_of(storage: Storage, key: str, *, trust_store: bool = True) -> str:
    """The CRC-64/NVME of an object, 16 hex digits, in bounded memory.

    Args:
        storage: where it is.
        key: its name.
        trust_store: whether a checksum that the store has computed saves the download.

    Raises:
        DataError: missing or unreachable.
    """
    if trust_store and (known := storage.known_checksum(key)):
        return known
    checksum = Crc64()
    for start, length in _windows(storage.size(key)):
        checksum.update(storage.read_range(key, start, length))
    return checksum.hexdigest()


def _windows(size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, _WINDOW_BYTES):
        yield start, min(_WINDOW_BYTES, size - start)
