"""A fetched table of URLs: the ledger and the objects that `fetch_table` has written."""

import hashlib
from typing import Any, NamedTuple

from gear_data_prep.fetch_table import ledger_key, load_ledger, object_key
from gear_data_prep.samples import BadSampleError, RawSample
from gear_data_prep.sources.base import Source, make_splits
from gear_data_prep.sources.files import Place, SourceOptions, is_remote
from gear_data_prep.tar_writer import SAMPLE_OVERHEAD_BYTES
from gear_dist.errors import DataError
from gear_dist.storage import MissingObjectError, Storage, open_storage

_KEPT_LEDGERS = 64


class LedgerRun(NamedTuple):
    """Neighbouring rows of a ledger file."""

    key: str
    first: int
    num_samples: int
    total_bytes: int
    digest: str
    """Of the rows: their hashes, captions and errors."""

    @property
    def cost_bytes(self) -> int:
        return self.total_bytes + self.num_samples * SAMPLE_OVERHEAD_BYTES

    @property
    def identity(self) -> str:
        return f"{self.first} {self.num_samples} {self.digest} {self.key}"


class FetchedReader:
    """Reads fetched images."""

    def __init__(self, fetched: Storage) -> None:
        self.fetched = fetched
        self.remote = is_remote(fetched)
        self._ledgers: dict[str, list[dict[str, Any]]] = {}

    def __reduce__(self) -> tuple[type, tuple[Storage]]:
        return FetchedReader, (self.fetched,)

    def _ledger(self, key: str) -> list[dict[str, Any]]:
        if key not in self._ledgers:
            if len(self._ledgers) >= _KEPT_LEDGERS:
                self._ledgers.clear()
            self._ledgers[key] = load_ledger(self.fetched, key)
        return self._ledgers[key]

    def read(self, unit: LedgerRun) -> list[RawSample]:
        """A run's rows; DataError where ledger or objects changed since they were listed."""
        rows = self._ledger(unit.key)[unit.first : unit.first + unit.num_samples]
        if _digest(rows) != unit.digest:
            raise DataError(f"{self.fetched.address}/{unit.key}: changed: run the command again")
        return [self._sample(row) for row in rows]

    def _sample(self, row: dict[str, Any]) -> RawSample:
        if "sha256" not in row:
            problem = BadSampleError("not-fetched", row.get("error", "not fetched"))
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
        return RawSample(row["url"], image, "", row["class_index"], captions)


def open_url_table(place: Place, options: SourceOptions) -> Source:
    """List what was fetched of a table.

    Raises:
        DataError: nothing was fetched yet.
    """
    fetched = open_storage(options.fetched, place.endpoint)
    units: list[LedgerRun] = []
    chunk = 0
    while fetched.exists(ledger_key(chunk)):
        rows = load_ledger(fetched, ledger_key(chunk))
        for first in range(0, len(rows), options.block_samples):
            part = rows[first : first + options.block_samples]
            size = sum(row.get("bytes", 0) for row in part)
            units.append(LedgerRun(ledger_key(chunk), first, len(part), size, _digest(part)))
        chunk += 1
    if not units:
        raise DataError(f"{fetched.address}: nothing fetched there")
    return Source(
        f"{place.storage.address}/{place.only}".rstrip("/"),
        FetchedReader(fetched),
        options.classes,
        make_splits({"train": units}, options.validation_share),
    )


def _digest(rows: list[dict[str, Any]]) -> str:
    text = repr([(r.get("sha256"), r.get("error"), r["captions"], r["class_index"]) for r in rows])
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]
