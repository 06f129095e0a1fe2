"""Fetches the images of a table of URLs once, into objects named by their content.

FETCHED/objects/ab/SHA256             the images
FETCHED/ledger/000000.json            what became of 1000 addresses: hash and size, or an error
FETCHED/tables/COLUMNS/000000.json    the table as it is now: those, with captions and labels

A ledger file appears when all of its rows are settled; the same command goes on at the first
that is missing. Captions and labels are the table's at every run, and images of addresses that
stay are not fetched again. Sharding reads the joined rows and the objects alone, so that it gives
the same bytes however often, and whatever the web has become.
"""

import hashlib
import itertools
import json
import re
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from gear_data_prep.fetch import Fetcher, FetchError, FetchLimits
from gear_data_prep.progress import Progress
from gear_data_prep.samples import common_reasons
from gear_data_prep.sources.files import SourceOptions, open_root
from gear_data_prep.url_rows import Tell, UrlRow, read_url_rows
from gear_dist.errors import DataError
from gear_dist.storage import MissingObjectError, Storage, open_storage

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


def ledger_key(chunk: int) -> str:
    """Where the fate of a chunk of rows is written."""
    return f"ledger/{chunk:06d}.json"


def table_key(options: SourceOptions, chunk: int) -> str:
    """Where a chunk of the joined table is written; another choice of columns is another table."""
    return f"{_table_prefix(options)}{chunk:06d}.json"


def _table_prefix(options: SourceOptions) -> str:
    choice = json.dumps([options.url_column, options.caption_column, options.class_column])
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
        connections: downloads at a time.
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
    settler = _Settler(target, options, max_bad_share)
    rows = read_url_rows(place.storage, place.only, options, tell)
    pending: deque[_Chunk] = deque()
    with ThreadPoolExecutor(connections) as pool:
        try:
            for number, chunk in enumerate(_chunks(rows)):
                before = _load_ledger(target, number, chunk)
                asked = {shown_url(row.url): row.url for row in chunk if not row.problem}
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


class _Settler:
    """Waits for chunks, and writes their ledgers and joined rows."""

    def __init__(self, target: Storage, options: SourceOptions, max_bad_share: float) -> None:
        self._target, self._options = target, options
        self._max_bad_share = max_bad_share
        self._progress = Progress("fetch", 0)
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
        _write_rows(self._target, table_key(self._options, chunk.number), joined)
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
                f"fetched ({common_reasons(self.result.errors)}): mend what ails them, then "
                "--refetch; --max-bad-share 1 goes on all the same"
            )

    def finish(self) -> FetchResult:
        """Remove joined rows of a longer table that was here before."""
        self._progress.finish()
        for item in list(self._target.list(_table_prefix(self._options))):
            if item.key >= table_key(self._options, self.num_chunks):
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


def _load_ledger(target: Storage, chunk: int, rows: list[UrlRow]) -> dict[str, dict[str, Any]]:
    """Ledger lines of a chunk by address, an image before an error.

    Rows may come and go; a ledger none of whose addresses is left is that of another table.
    """
    if not target.exists(ledger_key(chunk)):
        return {}
    lines: dict[str, dict[str, Any]] = {}
    for line in load_rows(target, ledger_key(chunk)):
        url = shown_url(line["url"])
        if "sha256" not in lines.get(url, {}):
            kept = [name for name in ("sha256", "bytes", "error") if name in line]
            lines[url] = {"url": url} | {name: line[name] for name in kept}
    if lines.keys().isdisjoint(shown_url(row.url) for row in rows):
        raise DataError(
            f"{target.address}: was fetched from another table: choose another --fetched"
        )
    return lines


def load_rows(target: Storage, key: str) -> list[dict[str, Any]]:
    """The rows of a ledger or joined file; DataError where it is damaged."""
    try:
        rows = json.loads(target.read(key))["rows"]
        assert all(isinstance(row["url"], str) for row in rows)
        return rows
    except (ValueError, KeyError, TypeError, AssertionError):
        raise DataError(f"{target.address}/{key}: damaged: delete it and fetch again") from None


def shown_url(url: str) -> str:
    """An address as files and messages have it: without a user name and password."""
    if "@" not in url:
        return url
    try:
        parts = parse_url(url)
        if parts.scheme in ("http", "https") and parts.auth is None:
            return url
    except LocationParseError:
        pass
    return re.sub(r"^([a-zA-Z][\w+.-]*:/*)?.*@", r"\1***@", url, flags=re.DOTALL)


def _chunks(rows: Iterator[UrlRow]) -> Iterator[list[UrlRow]]:
    while chunk := list(itertools.islice(rows, CHUNK_ROWS)):
        yield chunk
