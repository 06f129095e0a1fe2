"""Fetches the images of a table of URLs once, into objects named by their content.

FETCHED/objects/ab/SHA256             the images
FETCHED/ledger/000000.json            what became of 1000 addresses: hash and size, or an error
FETCHED/tables/COLUMNS/000000.json    the table as it is now: those, with captions and labels

A ledger file appears when all of its rows are settled; the same command resumes at the first
that is missing. Captions and labels are the table's at every run, and images of addresses that
stay are not fetched again. Sharding reads the joined rows and the objects alone, so that it gives
the same bytes however often, and whatever the web has become.
"""

import functools
import hashlib
import itertools
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from gear_data_prep.samples import common_reasons
from gear_data_prep.sources.fetch import Fetcher, FetchError, FetchLimits
from gear_data_prep.sources.files import Place, SourceOptions, open_root
from gear_data_prep.sources.ledgers import Ledgers, ledger_key, shown_url
from gear_data_prep.sources.url_rows import Tell, UrlRow, read_url_rows
from gear_dist.errors import DataError
from gear_dist.progress import ImageProgress
from gear_dist.storage.base import MissingObjectError, Storage
from gear_dist.storage.open import open_storage

CHUNK_ROWS = 1000
_CHUNKS_AHEAD = 4


class FetchResult(NamedTuple):
    """What a fetch has done."""

    num_rows: int
    num_fetched: int
    """Rows that have an image now."""
    num_reused: int
    """Rows that a former run had settled, or that need no download."""
    errors: Counter[str]
    """Rows without one, by reason."""


class _Chunk(NamedTuple):
    """Rows of a ledger file on their way."""

    number: int
    rows: list[UrlRow]
    before: dict[str, dict[str, Any]]
    """What the ledger says so far, by address."""
    futures: dict[str, Future[dict[str, Any]]]
    """Downloads of what it does not say, by address."""

    def line(self, row: UrlRow) -> dict[str, Any]:
        """What became of a row; waits for it."""
        url = shown_url(row.url)
        if row.problem:
            return {"url": url, "error": row.problem}
        return self.futures[url].result() if url in self.futures else self.before[url]


def table_key(table: str, options: SourceOptions, chunk: int) -> str:
    """Where a chunk of the joined table is written.

    Another table and another choice of columns are written elsewhere: two commands at a time that
    share their images must not write into each other's rows.
    """
    return f"{_table_prefix(table, options)}{chunk:06d}.json"


def table_address(place: Place) -> str:
    """A table's address."""
    return f"{place.storage.address}/{place.only}".rstrip("/")


def _table_prefix(table: str, options: SourceOptions) -> str:
    choice = json.dumps([table, options.url_column, options.caption_column, options.class_column])
    return f"tables/{hashlib.sha256(choice.encode()).hexdigest()[:16]}/"


def object_key(digest: str) -> str:
    """Where an image with this hex SHA-256 is kept."""
    return f"objects/{digest[:2]}/{digest}"


def fetch_table(
    address: str,
    options: SourceOptions,
    endpoint: str,
    *,
    limits: FetchLimits,
    connections: int,
    again: bool = False,
    max_bad_share: float = 1.0,
    tell: Tell = print,
) -> FetchResult:
    """Fetch every row that is not settled yet, and join the table with what was fetched.

    Args:
        address: a parquet, CSV or TSV file, or a folder of them.
        options: names of the columns, and `fetched`, where to keep the images.
        endpoint: S3 endpoint of both.
        limits: what one download may cost.
        connections: parallel downloads.
        again: whether rows that failed are tried again.
        max_bad_share: below 1 a table of whose first rows none can be fetched is given up.
        tell: takes lines for the user.

    Raises:
        DataError: no table there, another one than the ledger's, or one none of whose first
            rows could be fetched.
        ConfigError: no column of addresses.
    """
    place = open_root(address, endpoint)
    target = open_storage(options.fetched, endpoint)
    fetcher = Fetcher(limits, connections)
    settler = _Settler(target, table_address(place), options, max_bad_share)
    read = functools.partial(read_url_rows, place.storage, place.only, options)
    known = _Known(target, read)
    rows = read(tell)
    pending: deque[_Chunk] = deque()
    with ThreadPoolExecutor(connections) as pool:
        try:
            for number, chunk in enumerate(_chunks(rows)):
                asked = {shown_url(row.url): row.url for row in chunk if not row.problem}
                before = known.of_chunk(number, asked, again)
                futures = {
                    shown: pool.submit(_fetch_row, fetcher, target, url)
                    for shown, url in asked.items()
                    if shown not in before or (again and "error" in before[shown])
                }
                pending.append(_Chunk(number, chunk, before, futures))
                while len(pending) >= _CHUNKS_AHEAD:
                    settler.settle(pending.popleft())
            if not settler.num_chunks and not pending:
                raise DataError(f"{address}: has no rows")
            while pending:
                settler.settle(pending.popleft())
        except BaseException:
            fetcher.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return settler.finish()


class _Known:
    """What became of addresses that were asked for before."""

    def __init__(self, target: Storage, read: Callable[[Tell], Iterator[UrlRow]]) -> None:
        self._target, self._read = target, read
        self._ledgers = Ledgers(target)
        self._is_same_table = False

    def of_chunk(self, number: int, asked: dict[str, str], again: bool) -> dict[str, Any]:
        """Ledger lines by address: the chunk's own, and of rows that came from another chunk.

        Args:
            number: of the chunk.
            asked: its addresses.
            again: whether an error is worth another look.

        Raises:
            DataError: the ledgers know none of the table's addresses.
        """
        own = self._ledgers.of_chunk(number)
        wanted = [url for url in asked if url not in own or (again and "error" in own[url])]
        lines = own | self._ledgers.find(wanted) if wanted else own
        if own and asked and not self._is_same_table and lines.keys().isdisjoint(asked):
            self._check_table()
        return lines

    def _check_table(self) -> None:
        """Rows may come and go; ledgers none of whose addresses is left are another table's."""
        rows = self._read(lambda _: None)
        if not any(
            self._ledgers.find(shown_url(row.url) for row in part) for part in _chunks(rows)
        ):
            raise DataError(
                f"{self._target.address}: was fetched from another table: choose another --fetched"
            )
        self._is_same_table = True


class _Settler:
    """Waits for chunks, and writes their ledgers and joined rows."""

    def __init__(
        self, target: Storage, table: str, options: SourceOptions, max_bad_share: float
    ) -> None:
        self._target, self._table, self._options = target, table, options
        self._max_bad_share = max_bad_share
        self._progress = ImageProgress("fetch", 0)
        self.num_chunks = 0
        self.result = FetchResult(0, 0, 0, Counter())

    def settle(self, chunk: _Chunk) -> None:
        """Wait for a chunk; DataError where the first one has no image at all."""
        lines = [chunk.line(row) for row in chunk.rows]
        # Rows that have left the table may come back: what is known of them is kept.
        present = {line["url"] for line in lines}
        left = [line for url, line in chunk.before.items() if url not in present]
        _write_rows(self._target, ledger_key(chunk.number), lines + left)
        joined = [
            {**line, "captions": row.captions, "label": row.label}
            for row, line in zip(chunk.rows, lines, strict=True)
        ]
        _write_rows(self._target, table_key(self._table, self._options, chunk.number), joined)
        self._progress.advance(len(lines), timed=bool(chunk.futures))
        self.num_chunks += 1
        num_fetched = sum("sha256" in line for line in lines)
        self.result = FetchResult(
            self.result.num_rows + len(lines),
            self.result.num_fetched + num_fetched,
            self.result.num_reused + sum(line["url"] not in chunk.futures for line in lines),
            self.result.errors + Counter(line["error"] for line in lines if "error" in line),
        )
        if not self.result.num_fetched and self._max_bad_share < 1:
            # A table of millions is not to be asked for in vain.
            raise DataError(
                f"{self._target.address}: none of the first {self.result.num_rows} rows could be "
                f"fetched ({common_reasons(self.result.errors)}): fix the cause, then "
                "--refetch; --max-bad-share 1 continues anyway"
            )

    def finish(self) -> FetchResult:
        """Remove joined rows of a longer table that was here before."""
        self._progress.finish()
        for item in list(self._target.list(_table_prefix(self._table, self._options))):
            if item.key >= table_key(self._table, self._options, self.num_chunks):
                self._target.delete(item.key)
        return self.result


def _write_rows(target: Storage, key: str, rows: list[dict[str, Any]]) -> None:
    """Write rows, unless they are there already."""
    data = json.dumps({"rows": rows}, indent=0).encode()
    try:
        if target.read(key) == data:
            return
    except MissingObjectError:
        pass
    target.write(key, data)


def _fetch_row(fetcher: Fetcher, target: Storage, url: str) -> dict[str, Any]:
    """A ledger line."""
    line: dict[str, Any] = {"url": shown_url(url)}
    try:
        data = fetcher.fetch(url)
    except FetchError as error:
        return {**line, "error": str(error)}
    digest = hashlib.sha256(data).hexdigest()
    key = object_key(digest)
    if not target.exists(key):
        target.write(key, data)
    return {**line, "sha256": digest, "bytes": len(data)}


def _chunks(rows: Iterator[UrlRow]) -> Iterator[list[UrlRow]]:
    while chunk := list(itertools.islice(rows, CHUNK_ROWS)):
        yield chunk
