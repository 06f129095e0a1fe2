"""Runs of neighbouring samples in tars: the units of every source that is made of tars."""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from gear_data_prep.samples import MAX_SAMPLE_BYTES, MAX_SIDECAR_BYTES, BadSample
from gear_data_prep.sources.files import SourceFile, is_remote, open_seekable, read_at
from gear_data_prep.sources.index_cache import remember
from gear_dist.data.tar_members import ReadAt, TarDamageError, walk_members
from gear_dist.data.tar_samples import TarSample, group_samples
from gear_dist.data.tar_writer import SAMPLE_OVERHEAD_BYTES

MAX_RUN_BYTES = 8 << 20
_LABELS = ("label", "labels", "class", "cls", "class_id", "class_index", "class_name", "category")
_INDEX_THREADS = 16
FIELDS = [
    ("file", "<i4"),
    ("start", "<i8"),
    ("length", "<i8"),
    ("first", "<i8"),
    ("num_samples", "<i4"),
    ("class_index", "<i4"),
]


class TarRun(NamedTuple):
    """Neighbouring samples of a tar."""

    key: str
    start: int
    """Byte of the tar where their first header is."""
    length: int
    first: int
    """Number of the first sample within its tar."""
    num_samples: int
    class_index: int

    @property
    def cost_bytes(self) -> int:
        return self.length + self.num_samples * SAMPLE_OVERHEAD_BYTES

    @property
    def identity(self) -> str:
        return f"{self.class_index} {self.start} {self.length} {self.num_samples} {self.key}"


class TarRuns(Sequence[Any]):
    """Many runs at 32 bytes each: 100 million samples are a few million runs."""

    def __init__(self, files: list[str], table: np.ndarray) -> None:
        self._files, self._table = files, table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: Any) -> TarRun:
        row = self._table[index].item()
        return TarRun(self._files[row[0]], *row[1:])


class TarIndex(NamedTuple):
    """Runs of one tar."""

    rows: list[tuple[int, int, int, int, int]]
    """Rows of FIELDS less the file."""
    bad: list[tuple[str, str]]
    """Kind and reason of what cannot be read: samples that are too large, the end of a tar."""
    label: str = ""
    """The member of its first sample's JSON that is called like a class, with its value."""


def index_runs(samples: Iterator[TarSample], block_samples: int, class_index: int = -1) -> TarIndex:
    """Cut a tar's samples into runs of at most so many and about MAX_RUN_BYTES."""
    rows: list[tuple[int, int, int, int, int]] = []
    bad: list[tuple[str, str]] = []
    start = end = count = first = 0
    try:
        for sample in samples:
            begin, stop = sample.start, sample.end
            if stop - begin > MAX_SAMPLE_BYTES:
                bad.append(("too-large", f"{sample.key}: {stop - begin} bytes in a sample"))
                continue
            # Members between two samples (folders, hidden files) end a run.
            full = count >= block_samples or stop - start > MAX_RUN_BYTES
            if count and (full or begin != end):
                rows.append((start, end - start, first, count, class_index))
                first, count = first + count, 0
            start, end, count = (start if count else begin), stop, count + 1
    except TarDamageError as error:
        bad.append(("broken-tar", str(error)))
    if count:
        rows.append((start, end - start, first, count, class_index))
    return TarIndex(rows, bad)


def _index(file: SourceFile, block_samples: int) -> TarIndex:
    with open_seekable(file.storage, file.key) as stream:
        read = read_at(stream)
        # Before the walk, which begins with the same bytes.
        label = _json_label(read, file.bytes)
        members = walk_members(read, 0, file.bytes, needs_end=True)
        return index_runs(group_samples(members), block_samples)._replace(label=label)


def _json_label(read: ReadAt, size: int) -> str:
    """See TarIndex; empty where the sample says its class where it is read."""
    try:
        first = next(group_samples(walk_members(read, 0, size)), None)
        if first is None or "cls" in first.members or "json" not in first.members:
            return ""
        member = first.members["json"]
        node = json.loads(read(member.offset, min(member.size, MAX_SIDECAR_BYTES)))
    except (TarDamageError, ValueError, RecursionError):
        return ""
    name = next((name for name in _LABELS if isinstance(node, dict) and name in node), "")
    return f"{name}: {str(node[name])[:40]!r}" if name else ""


def list_runs(
    files: Sequence[SourceFile], block_samples: int, class_of: Sequence[int] = ()
) -> tuple[TarRuns, list[BadSample], dict[str, str]]:
    """Index tars, several at a time where they are remote, in the files' order.

    Also what is damaged, and by tar the member of its JSON that is called like a class.

    Args:
        class_of: class index of each file's samples, -1: they say it themselves; empty: all do.
    """

    def index(file: SourceFile) -> TarIndex:
        return TarIndex(
            *remember(file, f"runs {block_samples}", lambda: _index(file, block_samples))
        )

    remote = any(is_remote(file.storage) for file in files)
    threads = _INDEX_THREADS if remote else min(2, os.cpu_count() or 1)
    tables = [np.zeros(0, FIELDS)]
    damaged = []
    labels: dict[str, str] = {}
    with ThreadPoolExecutor(threads) as pool:
        for number, (found, bad, label) in enumerate(pool.map(index, files)):
            table = np.array([(number, *row) for row in found], FIELDS)
            if class_of:
                table["class_index"] = class_of[number]
            tables.append(table)
            damaged += [BadSample(files[number].key, *item) for item in bad]
            if label:
                labels[files[number].key] = label
    return TarRuns([file.key for file in files], np.concatenate(tables)), damaged, labels
