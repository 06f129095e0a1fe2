"""Fetches the images of a table of URLs once, into objects named by their content.

FETCHED/objects/ab/SHA256      the images
FETCHED/ledger/000000.json     what became of 1000 rows: hash, size and captions, or an error

A ledger file appears when all of its rows are settled; the same command goes on at the first
that is missing. From then on sharding reads the ledger and the objects alone, so that it gives
the same bytes however often, and whatever the web has become.
"""

import hashlib
import itertools
import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from gear_data_prep.fetch import Fetcher, FetchError, FetchLimits
from gear_data_prep.progress import Progress
from gear_data_prep.sources.files import SourceOptions, find_files, open_root, open_seekable
from gear_data_prep.sources.parquet_rows import (
    CAPTION_COLUMNS,
    CLASS_COLUMNS,
    caption_texts,
    cell_value,
    pick_column,
)
from gear_dist.errors import ConfigError, DataError
from gear_dist.storage import Storage, open_storage

CHUNK_ROWS = 1000
URL_COLUMNS = ("url", "URL", "image_url", "img_url", "link")
TABLE_SUFFIXES = (".parquet", ".csv", ".tsv")
_CHUNKS_AHEAD = 4


class FetchResult(NamedTuple):
    """What a fetch has done."""

    num_rows: int
    num_fetched: int
    """Rows that have an image now."""
    num_reused: int
    """Rows that a former run had settled."""


class _Row(NamedTuple):
    url: str
    captions: tuple[Any, ...]
    class_index: int


class _Chunk(NamedTuple):
    """Rows of a ledger file on their way."""

    number: int
    num_rows: int
    known: dict[int, dict[str, Any]]
    """Lines that a former run had settled, by row."""
    futures: dict[int, Future[dict[str, Any]]]


def ledger_key(chunk: int) -> str:
    """Where the fate of a chunk of rows is written."""
    return f"ledger/{chunk:06d}.json"


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
) -> FetchResult:
    """Fetch every row that is not settled yet.

    Args:
        address: a parquet, CSV or TSV file, or a folder of them.
        options: names of the columns, and `fetched`, where to keep the images.
        endpoint: S3 endpoint of both.
        limits: what one download may cost.
        connections: downloads at a time.
        again: whether rows that failed are tried again.

    Raises:
        DataError: no table there, or another one than the ledger's.
        ConfigError: no column of addresses.
    """
    place = open_root(address, endpoint)
    target = open_storage(options.fetched, endpoint)
    fetcher = Fetcher(limits, connections)
    progress = Progress("fetch", 0)
    result = FetchResult(0, 0, 0)
    pending: deque[_Chunk] = deque()
    with ThreadPoolExecutor(connections) as pool:
        try:
            for number, rows in enumerate(_chunks(place.storage, place.only, options)):
                known = _settled(target, number, rows, again)
                futures = {
                    i: pool.submit(_fetch_row, fetcher, target, row)
                    for i, row in enumerate(rows)
                    if i not in known
                }
                pending.append(_Chunk(number, len(rows), known, futures))
                while len(pending) >= _CHUNKS_AHEAD:
                    result = _settle(target, pending.popleft(), result, progress)
            while pending:
                result = _settle(target, pending.popleft(), result, progress)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    progress.finish()
    return result


def _settle(target: Storage, chunk: _Chunk, result: FetchResult, progress: Progress) -> FetchResult:
    """Wait for a chunk's downloads and write its ledger."""
    lines = [
        chunk.known[i] if i in chunk.known else chunk.futures[i].result()
        for i in range(chunk.num_rows)
    ]
    if chunk.futures:
        data = json.dumps({"rows": lines}, indent=0).encode()
        target.write(ledger_key(chunk.number), data)
    progress.advance(len(lines), timed=bool(chunk.futures))
    return FetchResult(
        result.num_rows + len(lines),
        result.num_fetched + sum("sha256" in line for line in lines),
        result.num_reused + len(chunk.known),
    )


def _fetch_row(fetcher: Fetcher, target: Storage, row: _Row) -> dict[str, Any]:
    """A ledger line."""
    line: dict[str, Any] = {
        "url": row.url,
        "class_index": row.class_index,
        "captions": [c if isinstance(c, str) else None for c in row.captions],
    }
    try:
        data = fetcher.fetch(row.url)
    except FetchError as error:
        return {**line, "error": str(error)}
    digest = hashlib.sha256(data).hexdigest()
    key = object_key(digest)
    if not target.exists(key):
        target.write(key, data)
    return {**line, "sha256": digest, "bytes": len(data)}


def _settled(target: Storage, chunk: int, rows: list[_Row], again: bool) -> dict[int, Any]:
    """Ledger lines of rows that need no download."""
    if not target.exists(ledger_key(chunk)):
        return {}
    lines = load_ledger(target, ledger_key(chunk))
    if [line["url"] for line in lines] != [row.url for row in rows]:
        raise DataError(
            f"{target.address}: was fetched from another table: choose another --fetched"
        )
    return {i: line for i, line in enumerate(lines) if not again or "sha256" in line}


def load_ledger(target: Storage, key: str) -> list[dict[str, Any]]:
    """The lines of a ledger file; DataError where it is damaged."""
    try:
        rows = json.loads(target.read(key))["rows"]
        assert all(isinstance(row["url"], str) for row in rows)
        return rows
    except (ValueError, KeyError, TypeError, AssertionError):
        raise DataError(
            f"{target.address}/{key}: damaged ledger: delete it and fetch again"
        ) from None


def _chunks(storage: Storage, only: str, options: SourceOptions) -> Iterator[list[_Row]]:
    rows = itertools.chain.from_iterable(
        _read_table(storage, item.key, options)
        for item in find_files(storage, only, TABLE_SUFFIXES)
    )
    while chunk := list(itertools.islice(rows, CHUNK_ROWS)):
        yield chunk


def _read_table(storage: Storage, key: str, options: SourceOptions) -> Iterator[_Row]:
    try:
        with open_seekable(storage, key) as stream:
            batches = _batches(stream, key)
            for batch in batches:
                yield from _rows(batch, key, options)
    except (pa.ArrowException, OSError) as error:
        line = (str(error).splitlines() or [""])[0]
        raise DataError(f"{storage.address}/{key}: cannot be read: {line}") from None


def _batches(stream: Any, key: str) -> Iterator[pa.RecordBatch]:
    if key.lower().endswith(".parquet"):
        with pq.ParquetFile(stream) as file:
            yield from file.iter_batches(CHUNK_ROWS)
        return
    delimiter = "\t" if key.lower().endswith(".tsv") else ","
    yield from pa.csv.open_csv(
        stream,
        parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(check_utf8=False, strings_can_be_null=False),
    )


def _rows(batch: pa.RecordBatch, key: str, options: SourceOptions) -> Iterator[_Row]:
    names = batch.schema.names
    url = pick_column(names, options.url_column, URL_COLUMNS)
    caption = pick_column(names, options.caption_column, CAPTION_COLUMNS)
    label = pick_column(names, options.class_column, CLASS_COLUMNS)
    if not url:
        raise ConfigError(
            f"{key}: no column of addresses among {', '.join(names)}: name it by --url-column"
        )
    for number in range(batch.num_rows):
        address = cell_value(batch.column(url)[number])
        captions = caption_texts(cell_value(batch.column(caption)[number])) if caption else ()
        index = cell_value(batch.column(label)[number]) if label else -1
        yield _Row(
            address if isinstance(address, str) else "",
            captions,
            index if isinstance(index, int) and index >= 0 else -1,
        )
