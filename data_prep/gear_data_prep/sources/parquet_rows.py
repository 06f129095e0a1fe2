"""Parquet with image bytes: the Hugging Face layout, {"bytes": ..., "path": ...} and captions."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from gear_data_prep.samples import (
    MAX_SIDECAR_BYTES,
    BadSampleError,
    RawSample,
    listed_texts,
    match_types,
    origin_columns,
    read_origin,
)
from gear_data_prep.sources.base import Source, make_splits
from gear_data_prep.sources.class_column import ClassColumn, make_class_column, read_label
from gear_data_prep.sources.files import Place, SourceOptions, find_files, is_remote, open_seekable
from gear_data_prep.sources.splits import check_validation_classes, group_by_split
from gear_dist.data.origins import SampleOrigin
from gear_dist.data.sample_filters import CAPTION_TYPE, LICENSE, SETTINGS, SUBSET
from gear_dist.data.tar_writer import SAMPLE_OVERHEAD_BYTES
from gear_dist.errors import ConfigError, DataError, UserError
from gear_dist.formatting import first_line
from gear_dist.storage.base import Storage
from gear_dist.storage.local import FileStorage

IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes")
CAPTION_COLUMNS = ("caption", "captions", "text", "txt", "sentences", "prompt")
CLASS_COLUMNS = (
    "label",
    "cls",
    "class_index",
    "fine_label",
    "labels",
    "class",
    "class_name",
    "class_id",
    "category",
    "coarse_label",
)
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
    caption_type: str = ""
    split: str = ""
    license: str = ""
    license_url: str = ""
    attribution: str = ""

    @property
    def names(self) -> list[str]:
        """Of all that are read, each once."""
        return list(dict.fromkeys(name for name in self if name))

    @property
    def needed(self) -> tuple[str, ...]:
        """Those whose types must be the same in all files."""
        return (self.image, self.caption, self.class_index)


class ParquetReader(NamedTuple):
    """Reads runs of rows."""

    storage: Storage
    remote: bool
    columns: Columns
    labels: ClassColumn | None = None
    """What cells of the class column stand for; None: they are indices."""

    def read(self, unit: RowRun) -> list[RawSample]:
        """The run's rows; DataError where the file changed since it was listed."""
        wanted = self.columns.names
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
        label = read_label(row.get(self.columns.class_index))
        captions = caption_texts(row.get(self.columns.caption))
        problem = None
        if any(not isinstance(text, str | bytes) for text in captions):
            problem, captions = BadSampleError("bad-caption", "its captions are not text"), ()
        elif sum(map(len, captions)) > MAX_SIDECAR_BYTES:
            reason = f"its texts exceed {MAX_SIDECAR_BYTES} bytes"
            problem, captions = BadSampleError("sidecar", reason), ()
        types: tuple[str, ...] = ()
        try:
            types = match_types(_types(row.get(self.columns.caption_type)), len(captions))
        except BadSampleError as error:
            problem = problem or error
        if self.labels is not None:
            index = self.labels.class_of(label)
        else:
            index = label if isinstance(label, int) else -1
        fields = self.columns._asdict()
        origin = read_origin(
            {field: _as_text(row.get(fields[field])) for field in SampleOrigin._fields}
        )
        return RawSample(
            name,
            image,
            suffix,
            index,
            captions,
            problem=problem,
            caption_types=types,
            origin=origin,
        )


def open_parquet(place: Place, options: SourceOptions) -> Source:
    """List parquet files by their footers; `validation-*.parquet` and `val-*` are that split, and
    `test-*.parquet` is left out.

    Raises:
        DataError: no parquet files, broken ones, or ones whose columns differ.
        ConfigError: no column of images, or a column that is not there.
    """
    storage, only = place.storage, place.only
    files = find_files(storage, only, (".parquet",))
    groups = group_by_split((item.key for item in files), only=bool(only))
    table = _read_schema(storage, groups.splits["train"][0], options)
    columns = table.columns
    splits = {
        split: [unit for key in keys for unit in _list_file(storage, key, table)]
        for split, keys in groups.splits.items()
    }
    if not splits["train"]:
        raise DataError(f"{storage.address}: its parquet files hold no rows")
    names = options.classes or table.classes
    labels = None
    if table.has_names:
        keys = {split: [run.key for run in runs] for split, runs in splits.items()}
        named = bool(options.class_column)
        labels = _read_labels(storage, keys, columns.class_index, names, named=named)
        names = labels.classes
    reader = ParquetReader(storage, is_remote(storage), columns, labels)
    units = {split: found for split, found in splits.items() if found}
    return Source(
        storage.address,
        reader,
        names,
        make_splits(units, options.validation_share),
        notes=(*groups.notes, *table.notes, *(labels.notes() if labels else ())),
        untold=tuple(
            SETTINGS[kind]
            for kind, column in (
                (SUBSET, columns.split),
                (LICENSE, columns.license),
                (CAPTION_TYPE, columns.caption_type),
            )
            if not column
        ),
    )


def _read_labels(
    storage: Storage,
    keys: dict[str, list[str]],
    column: str,
    names: tuple[str, ...],
    *,
    named: bool,
) -> ClassColumn:
    """What the cells of a class column stand for that has no integers.

    Raises:
        DataError: see `make_class_column`; classes that only validation has.
    """
    found: dict[str, set[Any]] = {}
    for split, listed in keys.items():
        labels = found.setdefault(split, set())
        for key in dict.fromkeys(listed):
            with open_parquet_file(storage, key) as file:
                for batch in file.iter_batches(columns=[column], use_threads=False):
                    # Of a dictionary the values, else what is there once.
                    labels |= {read_label(cell_value(one)) for one in batch.column(0).unique()}
    made = make_class_column(set().union(*found.values()), names, column, named=named)
    if made.classes and "validation" in found:
        in_use = {
            split: {made.classes[made.indices[label]] for label in labels if label in made.indices}
            for split, labels in found.items()
        }
        check_validation_classes(storage.address, in_use["train"], in_use["validation"])
    return made


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
        raise DataError(f"{name}: no parquet file, or damaged: {first_line(error)}") from None


def _open_file(storage: Storage, key: str) -> Any:
    if isinstance(storage, FileStorage):
        return pa.OSFile(os.fsencode(storage.root / key))  # as Python's own, at twice the speed
    return open_seekable(storage, key)


class _Table(NamedTuple):
    """What the first file says of all."""

    key: str
    schema: pa.Schema
    columns: Columns
    classes: tuple[str, ...]
    """Names that Hugging Face keeps in the metadata."""
    has_names: bool
    """Whether the class column has no integers, so that all of it must be looked at."""
    notes: tuple[str, ...]


def _read_schema(storage: Storage, key: str, options: SourceOptions) -> _Table:
    """The columns to use.

    Raises:
        ConfigError: no column of images, or one of classes that cannot be.
    """
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
    caption, caption_note = usable_column(
        key, schema, columns.caption, _may_be_captions, "--caption-column", options.caption_column
    )
    label, label_note = usable_column(
        key, schema, columns.class_index, may_be_labels, "--class-column", options.class_column
    )
    columns = columns._replace(caption=caption, class_index=label)
    if options.origins:
        origins = origin_columns(columns_found)
        columns = columns._replace(
            **{
                field: name
                for field, name in origins.items()
                if name not in columns.needed
                and may_be_url_captions(schema.field(columns_found.index(name)).type)
            }
        )
    other = "" if options.class_column else other_columns(columns_found, label)
    notes = tuple(note for note in (caption_note, label_note, other) if note)
    has_names = bool(label) and not pa.types.is_integer(schema.field(label).type)
    return _Table(key, schema, columns, tuple(map(str, names)), has_names, notes)


def usable_column(
    key: str,
    schema: pa.Schema,
    column: str,
    may_be: Callable[[pa.DataType], bool],
    option: str,
    named: str,
) -> tuple[str, str]:
    """The column, and no note; or no column, and a note on its type.

    Raises:
        ConfigError: its type cannot be, and the user named it.
    """
    # Names can be there twice; the first one counts.
    kind = schema.field(schema.names.index(column)).type if column else None
    if kind is None or may_be(kind):
        return column, ""
    needs = "text" if option == "--caption-column" else "whole numbers or text, as classes are"
    what = f"{key}: column {column} is of type {kind}, no {needs}"
    if named:
        raise ConfigError(f"{option} {named}: {what}: name another one, or rewrite it as such")
    return "", f"WARNING: {what}: it is not used; {option} names another"


def other_columns(names: list[str], taken: str) -> str:
    """A note where other columns could be those of classes as well."""
    usual = set(CLASS_COLUMNS)
    others = [name for name in names if name.casefold() in usual and name != taken]
    if not taken or not others:
        return ""
    return f"classes from {taken}; --class-column takes {' or '.join(others)} instead"


def _may_be_captions(kind: pa.DataType) -> bool:
    """Whether cells of this type can be text, or lists or structs of it."""
    if pa.types.is_dictionary(kind) or _is_list(kind):
        return _may_be_captions(kind.value_type)
    tests = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_struct,
        pa.types.is_null,
    )
    return any(test(kind) for test in tests)


def _is_list(kind: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests)


def may_be_url_captions(kind: pa.DataType) -> bool:
    """As captions of a table of addresses, where numbers are text that looks like one."""
    return _may_be_captions(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)


def may_be_labels(kind: pa.DataType) -> bool:
    """Whether cells of this type can say a class."""
    if pa.types.is_dictionary(kind):
        return may_be_labels(kind.value_type)
    tests = (
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_boolean,
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_null,
    )
    return any(test(kind) for test in tests)


def _check_columns(storage: Storage, key: str, schema: pa.Schema, first: _Table) -> None:
    for name in first.columns.names:
        found = schema.field(name).type if name in schema.names else None
        wanted = first.schema.field(name).type if name else found
        # One gap in a file's column of integers makes it one of floats.
        numbers = name == first.columns.class_index and all(
            kind is not None and (pa.types.is_integer(kind) or pa.types.is_floating(kind))
            for kind in (found, wanted)
        )
        if found is not None and name not in first.columns.needed:
            continue  # one file of a kind may have no licences, and then has a column of nulls
        if found != wanted and not numbers:
            what = "has no column" if found is None else f"{found} in column"
            raise DataError(
                f"{storage.address}/{key}: {what} {name}, of which {first.key} has "
                f"{first.schema.field(name).type}: shard files of other columns apart"
            )


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


def _list_file(storage: Storage, key: str, table: _Table) -> list[RowRun]:
    runs = []
    with open_parquet_file(storage, key) as file:
        _check_columns(storage, key, file.schema_arrow, table)
        file_first = 0
        for number in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(number)
            sizes = [group.column(i) for i in range(group.num_columns)]
            wanted = tuple(f"{name}." for name in table.columns.names)
            claims = [group.total_byte_size, *(c.total_uncompressed_size for c in sizes)]
            if max(claims) > MAX_GROUP_BYTES:
                raise DataError(
                    f"{storage.address}/{key}: row group {number} decompresses to more than "
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


def _as_text(value: Any) -> Any:
    """A cell as text: COCO numbers its licences."""
    return str(value) if type(value) is int else value


def _types(value: Any) -> tuple[str, ...]:
    """Types of captions in a cell: text, or a list of texts."""
    return listed_texts(value) if value else ()


def caption_texts(value: Any) -> tuple[Any, ...]:
    """Captions of a cell: text, a list of texts, or structs with the text under `raw`."""
    if isinstance(value, dict):
        value = value.get("raw")
    if value is None:
        return ()
    if isinstance(value, list):
        return tuple(text for item in value for text in caption_texts(item))
    return (value,)
