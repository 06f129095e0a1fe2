"""metrics.jsonl of a run folder: one record a line, appended; a line torn by a kill is dropped."""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from gear_dist.errors import StorageError
from gear_dist.storage.atomic import write_file
from gear_dist.storage.json_files import parse_json, to_json


class MetricsFile:
    """Appends to and reads a file of records. Construction touches no file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: FileIO | None = None

    def append(self, record: Mapping[str, Any]) -> None:
        """Append one record, visible to readers when this returns.

        Numbers that are not finite are written as null, so that each line is JSON. Tensors of one
        element are accepted, and synchronise: pass floats.

        Raises:
            StorageError: the disk refuses.
        """
        line = (to_json(record) + "\n").encode()
        try:
            with disk_errors(self.path):
                self._append(line)
        except StorageError:
            self.close()  # the next append looks for a torn line first
            raise

    def _append(self, line: bytes) -> None:
        if self._file is None:
            self._drop_torn_line()
            self._file = self.path.open("ab", buffering=0)
        while line:  # a disk that fills up takes a part first and fails at the next call
            line = line[self._file.write(line) :]

    def records(self) -> Iterator[dict[str, Any]]:
        """All records in order; a torn or unreadable line is left out."""
        if not self.path.is_file():
            return
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                record = _parse(line)
                if isinstance(record, dict) and isinstance(record.get("step"), int):
                    yield record

    def truncate(self, after_step: int) -> None:
        """Drop the records of steps beyond `after_step`, which a resumed run takes again."""
        if not self.path.is_file():
            return
        self.close()
        kept = [to_json(record) for record in self.records() if record["step"] <= after_step]
        write_file(self.path, "".join(line + "\n" for line in kept).encode())

    def close(self) -> None:
        """Close the file; a later append opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _drop_torn_line(self) -> None:
        if not self.path.is_file():
            return
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            write_file(self.path, data[:whole])


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a StorageError that names the file and the fix."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            fix = "the disk is full; free some space and run the same command again"
        elif isinstance(error, FileExistsError | NotADirectoryError):
            fix = "a file is where a folder is needed; move it or set another run.root"
        else:
            fix = f"cannot be written ({error.strerror}); set run.root to a folder you may write"
        raise StorageError(f"{where}: {fix}") from None


def _parse(line: str) -> Any:
    try:
        return parse_json(line)
    except ValueError:
        return None
