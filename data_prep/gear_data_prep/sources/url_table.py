"""A fetched table of URLs: the joined rows and the objects that `fetch_table` has written."""

import hashlib
from collections import Counter
from typing import Any, NamedTuple

from gear_data_prep.samples import NOT_FETCHED, BadSampleError, RawSample
from gear_data_prep.sources.base import Source, make_splits
from gear_data_prep.sources.class_column import ClassColumn, Label, make_class_column
from gear_data_prep.sources.fetch_table import object_key, table_address, table_key
from gear_data_prep.sources.files import Place, SourceOptions, is_remote
from gear_data_prep.sources.ledgers import ledger_key, load_rows
from gear_dist.data.tar_writer import SAMPLE_OVERHEAD_BYTES
from gear_dist.errors import DataError
from gear_dist.storage.base import MissingObjectError, Storage
from gear_dist.storage.open import open_storage

_KEPT_TABLES = 64


class TableRun(NamedTuple):
    """Neighbouring rows of a chunk of the joined table."""

    key: str
    chunk: int
    first: int
    num_samples: int
    total_bytes: int
    digest: str
    """Of the rows: their hashes, captions, labels and errors."""

    @property
    def cost_bytes(self) -> int:
        return self.total_bytes + self.num_samples * SAMPLE_OVERHEAD_BYTES

    @property
    def identity(self) -> str:
        # Not the key: two choices of columns that give the same rows are one corpus.
        return f"{self.first} {self.num_samples} {self.digest} {ledger_key(self.chunk)}"


class FetchedReader:
    """Reads fetched images."""

    def __init__(self, fetched: Storage, class_column: ClassColumn) -> None:
        self.fetched = fetched
        self.class_column = class_column
        self.remote = is_remote(fetched)
        self._tables: dict[str, list[dict[str, Any]]] = {}

    def __reduce__(self) -> tuple[type, tuple[Storage, ClassColumn]]:
        return FetchedReader, (self.fetched, self.class_column)

    def _table(self, key: str) -> list[dict[str, Any]]:
        if key not in self._tables:
            if len(self._tables) >= _KEPT_TABLES:
                self._tables.clear()
            self._tables[key] = load_rows(self.fetched, key)
        return self._tables[key]

    def read(self, unit: TableRun) -> list[RawSample]:
        """A run's rows; DataError where rows or objects changed since they were listed."""
        rows = self._table(unit.key)[unit.first : unit.first + unit.num_samples]
        if _digest(rows) != unit.digest:
            raise DataError(f"{self.fetched.address}/{unit.key}: changed: run the command again")
        return [self._sample(row) for row in rows]

    def _sample(self, row: dict[str, Any]) -> RawSample:
        if "sha256" not in row:
            problem = BadSampleError(NOT_FETCHED, row.get("error", "not fetched"))
            return RawSample(row["url"], b"", "", problem=problem)
        try:
            image = self.fetched.read(object_key(row["sha256"]))
        except MissingObjectError:
            image = b""
        if hashlib.sha256(image).hexdigest() != row["sha256"]:
            raise DataError(
                f"{self.fetched.address}/{object_key(row['sha256'])}: damaged: remove "
                f"{self.fetched.address} and fetch again"
            )
        captions = tuple(b"\xff" if text is None else text for text in row["captions"])
        # Addresses often end in anything: they are no claim about the format.
        return RawSample(row["url"], image, "", self.class_column.class_of(row["label"]), captions)


def open_url_table(place: Place, options: SourceOptions) -> Source:
    """List what was fetched of a table.

    Raises:
        DataError: nothing was fetched yet, or its classes are none.
    """
    fetched = open_storage(options.fetched, place.endpoint)
    units: list[TableRun] = []
    labels: set[Label] = set()
    missing: Counter[str] = Counter()
    chunk = 0
    while fetched.exists(key := table_key(table_address(place), options, chunk)):
        rows = load_rows(fetched, key)
        labels.update(row["label"] for row in rows)
        missing.update(row["error"] for row in rows if "error" in row)
        for first in range(0, len(rows), options.block_samples):
            part = rows[first : first + options.block_samples]
            size = sum(row.get("bytes", 0) for row in part)
            units.append(TableRun(key, chunk, first, len(part), size, _digest(part)))
        chunk += 1
    if not units:
        raise DataError(
            f"{fetched.address}: nothing fetched there for this choice of columns: run "
            "`gear-dist shard` on the table"
        )
    name = options.class_column or "of classes"
    column = make_class_column(labels, options.classes, name, named=bool(options.class_column))
    return Source(
        table_address(place),
        FetchedReader(fetched, column),
        column.classes,
        # By place: a corrected caption must not move images from one split to the other.
        make_splits(
            {"train": units}, options.validation_share, lambda unit: f"{unit.chunk} {unit.first}"
        ),
        notes=column.notes(),
        missing=missing,
    )


def _digest(rows: list[dict[str, Any]]) -> str:
    text = repr(
        [
            (
                r.get("sha256"),
                r.get("error"),
                r["captions"],
                -1 if r["label"] is None else r["label"],
            )
            for r in rows
        ]
    )
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]
