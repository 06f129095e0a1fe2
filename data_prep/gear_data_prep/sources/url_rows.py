"""Rows of tables of URLs: only the columns that are used are read, and text stays text."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from gear_data_prep.sources.class_column import Label, read_label
from gear_data_prep.sources.csv_lines import CsvFile
from gear_data_prep.sources.files import SourceOptions, find_files, open_seekable
from gear_data_prep.sources.parquet_rows import (
    CAPTION_COLUMNS,
    CLASS_COLUMNS,
    caption_texts,
    cell_value,
    may_be_labels,
    may_be_url_captions,
    open_parquet_file,
    other_columns,
    pick_column,
    usable_column,
)
from gear_dist.errors import ConfigError
from gear_dist.storage.base import Storage

URL_COLUMNS = ("url", "image_url", "img_url", "link")
TABLE_SUFFIXES = (".parquet", ".csv", ".tsv")
_BATCH_ROWS = 1000


class UrlRow(NamedTuple):
    """A row of a table."""

    url: str
    """Where there is a problem, its place in the table."""
    captions: tuple[str | None, ...] = ()
    """None: a caption that is not text."""
    label: Label = None
    problem: str = ""
    """Why it cannot be read."""


class UrlColumns(NamedTuple):
    """Which columns hold what; empty: none does."""

    url: str
    caption: str
    label: str


Tell = Callable[[str], None]
"""Takes a line for the user."""


def read_url_rows(
    storage: Storage, only: str, options: SourceOptions, tell: Tell
) -> Iterator[UrlRow]:
    """All rows of a parquet, CSV or TSV file, or of a folder of them in the order of names.

    Args:
        storage: where they are.
        only: the key of one file; empty: all files.
        options: names of columns.
        tell: gets a line on the columns that are used, where they change from file to file.

    Raises:
        DataError: no table, or one that cannot be read.
        ConfigError: no column of addresses, or none of a name that the user gave.
    """
    told: set[str] = set()
    for item in find_files(storage, only, TABLE_SUFFIXES):
        for names, columns, rows in _open_table(storage, item.key, options, tell):
            line = _describe(names, columns, options)
            if line not in told:
                tell(f"{item.key}: {line}")
            told.add(line)
            yield from rows


_Table = tuple[list[str], UrlColumns, Iterator[UrlRow]]


def _open_table(storage: Storage, key: str, options: SourceOptions, tell: Tell) -> Iterator[_Table]:
    """One table, as a stage that closes its file at the end."""
    if key.lower().endswith(".parquet"):
        with open_parquet_file(storage, key) as file:
            names = list(file.schema_arrow.names)
            columns = _pick(names, key, options)
            columns = _check_types(file.schema_arrow, key, columns, options, tell)
            yield names, columns, _parquet_rows(file, columns)
        return
    delimiter = "\t" if key.lower().endswith(".tsv") else ","
    with open_seekable(storage, key) as stream:
        file = CsvFile(f"{storage.address}/{key}", stream, delimiter)
        columns = _pick(file.names, key, options)
        yield file.names, columns, _csv_rows(file, key, columns)
        if file.num_swallowed:
            tell(
                f"WARNING: {key}: {file.num_swallowed:,} lines within quotes look like rows, the "
                f"first in what begins at line {file.first_swallowed}: if a quote is missing "
                "there, they are rows that are lost"
            )


def _pick(names: list[str], key: str, options: SourceOptions) -> UrlColumns:
    columns = UrlColumns(
        pick_column(names, options.url_column, URL_COLUMNS),
        pick_column(names, options.caption_column, CAPTION_COLUMNS),
        pick_column(names, options.class_column, CLASS_COLUMNS),
    )
    if not columns.url:
        raise ConfigError(
            f"{key}: no column of addresses among {_listed(names)}: name it by --url-column, and "
            "give the table a header line where it has none"
        )
    return columns


def _check_types(
    schema: Any, key: str, columns: UrlColumns, options: SourceOptions, tell: Tell
) -> UrlColumns:
    """The columns without those whose types say nothing; ConfigError where the user named one."""
    caption, caption_note = usable_column(
        key,
        schema,
        columns.caption,
        may_be_url_captions,
        "--caption-column",
        options.caption_column,
    )
    label, label_note = usable_column(
        key, schema, columns.label, may_be_labels, "--class-column", options.class_column
    )
    for note in filter(None, (caption_note, label_note)):
        tell(note)
    return columns._replace(caption=caption, label=label)


def _describe(names: list[str], columns: UrlColumns, options: SourceOptions) -> str:
    caption = f"captions from {columns.caption}"
    if not columns.caption:
        caption = f"no caption column among {_listed(names)}"
    label = f"classes from {columns.label}" if columns.label else "no class column"
    other = "" if options.class_column else other_columns(names, columns.label)
    if other:
        label = other
    return f"addresses from {columns.url}, {caption}, {label}"


def _listed(names: list[str]) -> str:
    shown = [name[:40] for name in names[:20]]
    return ", ".join(shown) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _csv_rows(file: CsvFile, key: str, columns: UrlColumns) -> Iterator[UrlRow]:
    """Rows whose number of fields is wrong are told as such: their fields are another's."""
    names = file.names
    places = [names.index(name) if name else -1 for name in columns]
    for line, cells, problem in file.records():
        if problem:
            yield UrlRow(f"{key}:{line}", problem=f"cannot be read from its table: {problem}")
        elif len(cells) != len(names):
            problem = f"its table's line has {len(cells)} fields instead of {len(names)}"
            yield UrlRow(f"{key}:{line}", problem=problem)
        else:
            yield _row(*(cells[i] if i >= 0 else None for i in places))


def _parquet_rows(file: Any, columns: UrlColumns) -> Iterator[UrlRow]:
    wanted = sorted({name for name in columns if name})
    for batch in file.iter_batches(_BATCH_ROWS, columns=wanted):
        # Names can be there twice; the first one counts.
        found = batch.schema.names
        cells = [batch.column(found.index(name)) if name else None for name in columns]
        for number in range(batch.num_rows):
            yield _row(*(None if cell is None else cell_value(cell[number]) for cell in cells))


def _row(url: Any, caption: Any, label: Any) -> UrlRow:
    address = _text(url) if isinstance(url, str | bytes) else None
    return UrlRow(address or "", tuple(map(_text, caption_texts(caption))), read_label(label))


def _text(value: Any) -> str | None:
    """A cell as text: numbers are captions too, where somebody wrote `2024` as one."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return str(value) if isinstance(value, str | int | float) else None
