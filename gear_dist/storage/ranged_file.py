"""An object of a storage as a file for reading, by ranged reads. No torch."""

import io

from gear_dist.storage.base import Storage


class RangedFile(io.RawIOBase):
    """Each read is one ranged read: put an io.BufferedReader around it for small ones."""

    def __init__(self, storage: Storage, key: str) -> None:
        """Asks for the object's size.

        Raises:
            DataError: it is missing or unreachable.
        """
        self._storage, self._key = storage, key
        self._size = storage.size(key)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size - self._position)
        size = left if size is None or size < 0 else min(size, left)
        data = self._storage.read_range(self._key, self._position, size) if size else b""
        self._position += size
        return data

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
