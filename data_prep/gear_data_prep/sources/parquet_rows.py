"""Parquet with image bytes: the Hugging Face layout, {"bytes": ..., "path": ...} and captions."""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from gear_data_prep.samples import MAX_SIDECAR_BYTES, BadSampleError, RawSample
from gear_data_prep.sources.base import Source, group_by_split, make_splits
from gear_data_prep.sources.files import Place, SourceOptions, find_files, is_remote, open_seekable
from gear_data_prep.tar_writer import SAMPLE_OVERHEAD_BYTES
from gear_dist.errors import ConfigError, DataError, UserError
from gear_dist.storage import FileStorage, Storage

IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes")
CAPTION_COLUMNS = ("caption", "captions", "text", "txt", "sentences", "prompt")
CLASS_COLUMNS = ("label", "cls", "class_index", "fine_label")
MAX_RUN_BYTES = 64 << 20
"""Row groups are cut into runs of about this size, that one does not fill a shard."""

MAX_GROUP_BYTES = 1 << 40
"""A footer that claims more in a row group is not believed."""

_BATCH_ROWS = 16
"""Rows that are decoded at a time: pyarrow makes no structs of 2 GiB and more in one piece, and a
row group of pictures can be larger than the memory."""
_BUFFER_BYTES = 1 << 20


class RowRun(NamedTuple):
    """Neighbouring rows of a row group."""

    key: str
    row_group: int
    first: int
    """Within the row group."""
    num_samples: int
    file_first: int
    """Number of the first row within its file, for people."""
    total_bytes: int

    @property
    def cost_bytes(self) -> int:
        return self.total_bytes + self.num_samples * SAMPLE_OVERHEAD_BYTES

    @property
    def identity(self) -> str:
        return f"{self.row_group} {self.first} {self.num_samples} {self.total_bytes} {self.key}"


class Columns(NamedTuple):
    """Which columns hold what; empty: none does."""

    image: str
    caption: str
    class_index: str


class ParquetReader(NamedTuple):
    """Reads runs of rows."""

    storage: Storage
    remote: bool
    columns: Columns

    def read(self, unit: RowRun) -> list[RawSample]:
        """The run's rows; DataError where the file changed since it was listed."""
        wanted = [name for name in self.columns if name]
        with open_parquet_file(self.storage, unit.key) as file:
            rows = list(_read_rows(file, unit, wanted))
        if len(rows) != unit.num_samples:
            raise DataError(f"{unit.key}: changed since it was listed: run the command again")
        return [
            self._sample(f"{unit.key}:{number}", row)
            for number, row in enumerate(rows, unit.file_first)
        ]

    def _sample(self, name: str, row: dict[str, Any]) -> RawSample:
        image, suffix = _image(row[self.columns.image])
        class_index = row.get(self.columns.class_index)
        captions = caption_texts(row.get(self.columns.caption))
        problem = None
        if any(not isinstance(text, str | bytes) for text in captions):
            problem, captions = BadSampleError("bad-caption", "its captions are not text"), ()
        elif sum(map(len, captions)) > MAX_SIDECAR_BYTES:
            reason = f"its texts exceed {MAX_SIDECAR_BYTES} bytes"
            problem, captions = BadSampleError("sidecar", reason), ()
        index = class_index if isinstance(class_index, int) and class_index >= 0 else -1
        return RawSample(name, image, suffix, index, captions, problem=problem)


def open_parquet(place: Place, options: SourceOptions) -> Source:
    """List parquet files by their footers; `validation-*.parquet` and `val-*` are that split.

    Raises:
        DataError: no parquet files, or broken ones.
        ConfigError: no column of images, or a column that is not there.
    """
    storage, only = place.storage, place.only
    files = find_files(storage, only, (".parquet",))
    columns, classes = _read_schema(storage, files[0].key, options)
    splits = {
        split: [unit for key in keys for unit in _list_file(storage, key, columns)]
        for split, keys in group_by_split(item.key for item in files).items()
    }
    if not splits["train"]:
        raise DataError(f"{storage.address}: its parquet files hold no rows")
    reader = ParquetReader(storage, is_remote(storage), columns)
    units = {split: found for split, found in splits.items() if found}
    return Source(
        storage.address,
        reader,
        options.classes or classes,
        make_splits(units, options.validation_share),
    )


def _read_rows(file: pq.ParquetFile, unit: RowRun, wanted: list[str]) -> Iterator[dict[str, Any]]:
    """The run's rows; those before it in its row group are decoded, and let go."""
    begin, end = unit.first, unit.first + unit.num_samples
    first = 0
    for batch in file.iter_batches(_BATCH_ROWS, [unit.row_group], wanted, use_threads=False):
        for i in range(max(0, begin - first), min(batch.num_rows, end - first)):
            yield {name: cell_value(batch.column(name)[i]) for name in wanted}
        first += batch.num_rows
        if first >= end:
            return


@contextlib.contextmanager
def open_parquet_file(storage: Storage, key: str) -> Iterator[pq.ParquetFile]:
    """A file, whose faults are DataErrors: damaged footers raise almost anything."""
    try:
        # Without both options pyarrow holds the whole column of a row group in memory.
        options = {"pre_buffer": False, "buffer_size": _BUFFER_BYTES}
        with _open_file(storage, key) as stream, pq.ParquetFile(stream, **options) as file:
            yield file
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, OverflowError) as error:
        name = f"{storage.address}/{key}"
        raise DataError(f"{name}: no parquet file, or damaged: {_line(error)}") from None


def _open_file(storage: Storage, key: str) -> Any:
    if isinstance(storage, FileStorage):
        return pa.OSFile(os.fsencode(storage.root / key))  # as Python's own, at twice the speed
    return open_seekable(storage, key)


def _read_schema(
    storage: Storage, key: str, options: SourceOptions
) -> tuple[Columns, tuple[str, ...]]:
    """The columns to use, and the class names that Hugging Face keeps in the metadata."""
    with open_parquet_file(storage, key) as file:
        schema = file.schema_arrow
        columns_found = list(schema.names)
    columns = Columns(
        pick_column(columns_found, options.image_column, IMAGE_COLUMNS),
        pick_column(columns_found, options.caption_column, CAPTION_COLUMNS),
        pick_column(columns_found, options.class_column, CLASS_COLUMNS),
    )
    if not columns.image:
        found = ", ".join(columns_found)
        raise ConfigError(
            f"{key}: no column of images among {found}: name it by --image-column, or fetch a "
            "table of addresses by --kind urls"
        )
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        names = list(features[columns.class_index]["names"])
    except (KeyError, TypeError, ValueError):
        names = []
    return columns, tuple(map(str, names))


def pick_column(names: list[str], wanted: str, usual: tuple[str, ...]) -> str:
    """The column that the user names, else the first of the usual ones; empty: none.

    Cases are told apart only where two columns differ in nothing else.
    """
    by_name = {name.casefold(): name for name in reversed(names)} | {name: name for name in names}
    if wanted and wanted not in by_name and wanted.casefold() not in by_name:
        raise ConfigError(f"no column {wanted} among {', '.join(names)}")
    for name in (wanted,) if wanted else usual:
        if name in by_name or name.casefold() in by_name:
            return by_name.get(name) or by_name[name.casefold()]
    return ""


def _list_file(storage: Storage, key: str, columns: Columns) -> list[RowRun]:
    runs = []
    with open_parquet_file(storage, key) as file:
        file_first = 0
        for number in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(number)
            sizes = [group.column(i) for i in range(group.num_columns)]
            wanted = tuple(f"{name}." for name in columns if name)
            claims = [group.total_byte_size, *(c.total_uncompressed_size for c in sizes)]
            if max(claims) > MAX_GROUP_BYTES:
                raise DataError(
                    f"{storage.address}/{key}: row group {number} unfolds to more than "
                    f"{MAX_GROUP_BYTES} bytes: write it again with smaller row groups"
                )
            size = sum(
                c.total_uncompressed_size
                for c in sizes
                if f"{c.path_in_schema}.".startswith(wanted)
            )
            pieces = max(1, -(-size // MAX_RUN_BYTES))
            step = max(1, -(-group.num_rows // pieces))
            for first in range(0, group.num_rows, step):
                count = min(step, group.num_rows - first)
                share = size * count // group.num_rows
                runs.append(RowRun(key, number, first, count, file_first + first, share))
            file_first += group.num_rows
    return runs


def cell_value(scalar: pa.Scalar) -> Any:
    """A cell's value; text that is not UTF-8 as bytes that are not either."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return b"\xff"


def _image(value: Any) -> tuple[bytes, str]:
    """Bytes and suffix of a cell: bytes, or a struct with the bytes and a path."""
    if isinstance(value, dict):
        path = value.get("path") or ""
        suffix = path.rpartition(".")[2].lower() if "." in path else ""
        return value.get("bytes") or b"", suffix
    return value if isinstance(value, bytes) else b"", ""


def caption_texts(value: Any) -> tuple[Any, ...]:
    """Captions of a cell: text, a list of texts, or structs with the text under `raw`."""
    if isinstance(value, dict):
        value = value.get("raw")
    if value is None:
        return ()
    if isinstance(value, list):
        return tuple(text for item in value for text in caption_texts(item))
    return (value,)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
