"""Records of CSV and TSV files, with an eye on quotes that were never closed."""

import csv
import io
from collections.abc import Iterator
from typing import Any, NamedTuple

from gear_dist.errors import DataError

_PEEK_BYTES = 4096
_DELIMITERS = {";": "semicolons", "\t": "tabs", ",": "commas", "|": "bars"}


class Record(NamedTuple):
    """A line of a table, or several where a quoted field holds line breaks."""

    line: int
    """Number of its first line, from 1."""
    cells: list[str]
    problem: str = ""
    """Why it cannot be read."""


class CsvFile:
    """The records of a file after its header line."""

    def __init__(self, name: str, stream: Any, delimiter: str) -> None:
        """Read the header line.

        Args:
            name: of the file, for people.
            stream: its bytes, seekable.

        Raises:
            DataError: an empty file, one in another encoding or with another delimiter.
        """
        self._name, self._delimiter = name, delimiter
        _check_encoding(name, stream)
        # Bytes that are not UTF-8 stay what they are, and are found when captions are checked.
        text = io.TextIOWrapper(
            io.BufferedReader(stream), encoding="utf-8-sig", errors="surrogateescape", newline=""
        )
        self._text = text
        self._at_end = False
        self._reader = csv.reader(self._lines(), delimiter=delimiter)
        header = self._next()
        if header is None:
            raise DataError(f"{name}: is empty")
        if header.problem:
            raise DataError(f"{name}: no header line: {header.problem}")
        self.names = [cell.strip() for cell in header.cells]
        self._check_delimiter()
        self.num_swallowed = 0
        """Lines within quoted fields that look like rows."""
        self.first_swallowed = 0
        """Line of the first record that holds one."""

    def records(self) -> Iterator[Record]:
        """All records that are not empty.

        Raises:
            DataError: a quote is still open at the end, or where a field becomes too long.
        """
        while (record := self._next()) is not None:
            swallowed = sum(map(self._count_rows, record.cells))
            if swallowed and not self.num_swallowed:
                self.first_swallowed = record.line
            self.num_swallowed += swallowed
            if record.cells or record.problem:
                yield record

    def _next(self) -> Record | None:
        line = self._reader.line_num + 1
        try:
            cells = next(self._reader)
        except StopIteration:
            return None
        except csv.Error as error:
            if self._reader.line_num > line:
                self._refuse_open_quote(line)
            return Record(line, [], str(error))
        if self._at_end:
            # The reader asks for a line after the last one within a quoted field only.
            self._refuse_open_quote(line)
        return Record(line, cells)

    def _lines(self) -> Iterator[str]:
        yield from self._text
        self._at_end = True

    def _refuse_open_quote(self, line: int) -> None:
        raise DataError(
            f"{self._name}:{line}: a quote that opens there is never closed, so that it takes in "
            f"all lines up to {self._reader.line_num}: close it, or double it where it is text"
        ) from None

    def _count_rows(self, cell: str) -> int:
        if "\n" not in cell and "\r" not in cell:
            return 0
        lines = cell.splitlines()[1:]
        least = len(self.names) - 1
        return sum("://" in line and line.count(self._delimiter) >= least for line in lines)

    def _check_delimiter(self) -> None:
        if len(self.names) > 1:
            return
        for other, word in _DELIMITERS.items():
            if other != self._delimiter and other in self.names[0]:
                wanted = _DELIMITERS[self._delimiter]
                raise DataError(
                    f"{self._name}: its fields are separated by {word} ({other!r}) instead of "
                    f"{wanted}: write it with {wanted} (.csv has commas, .tsv has tabs)"
                )


def _check_encoding(name: str, stream: Any) -> None:
    start = stream.read(_PEEK_BYTES)
    stream.seek(0)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in start:
        raise DataError(f"{name}: is no UTF-8 but UTF-16, or no text at all: save it as UTF-8")
