"""CRC-64/NVME of shards, the checksum that S3 itself can keep; about 50 GB/s a core. No torch."""

from awscrt import checksums


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
