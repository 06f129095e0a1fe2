"""Runs of neighbouring samples in tars: the units of every source that is made of tars."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from gear_data_prep.index_cache import remember
from gear_data_prep.samples import MAX_SAMPLE_BYTES, BadSample
from gear_data_prep.sources.files import SourceFile, is_remote, open_seekable, read_at
from gear_data_prep.tar_writer import SAMPLE_OVERHEAD_BYTES
from gear_dist.data.tar_members import Member, TarDamageError, walk_members

MAX_RUN_BYTES = 8 << 20
_MAX_SAMPLE_MEMBERS = 64
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


class Group(NamedTuple):
    """Neighbouring members of one sample."""

    key: str
    members: list[Member]


def group_members(members: Iterable[Member]) -> Iterator[Group]:
    """Members to samples as webdataset does: the name up to the first dot after its folder."""
    current: Group | None = None
    for member in members:
        key = sample_key(member.name)
        if current and current.key == key and len(current.members) < _MAX_SAMPLE_MEMBERS:
            current.members.append(member)
            continue
        if current:
            yield current
        current = Group(key, [member])
    if current:
        yield current


def sample_key(name: str) -> str:
    """A member's key: all before the first dot of its base name."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def is_hidden(name: str) -> bool:
    """Whether a member is a file system's own, such as `._x.jpg`."""
    base = name.rpartition("/")[2]
    return base.startswith(".") or not base


def index_runs(groups: Iterator[Group], block_samples: int, class_index: int = -1) -> TarIndex:
    """Cut groups into runs of at most so many samples and about MAX_RUN_BYTES."""
    rows: list[tuple[int, int, int, int, int]] = []
    bad: list[tuple[str, str]] = []
    start = end = count = first = 0
    try:
        for group in groups:
            begin, stop = group.members[0].start, group.members[-1].end
            if stop - begin > MAX_SAMPLE_BYTES:
                bad.append(("too-large", f"{group.key}: {stop - begin} bytes in a sample"))
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
        walk = walk_members(read_at(stream), 0, file.bytes)
        members = (member for member in walk if not is_hidden(member.name))
        return index_runs(group_members(members), block_samples)


def list_runs(files: Sequence[SourceFile], block_samples: int) -> tuple[TarRuns, list[BadSample]]:
    """Index tars, several at a time where they are remote, in the files' order."""

    def index(file: SourceFile) -> TarIndex:
        return TarIndex(
            *remember(file, f"runs {block_samples}", lambda: _index(file, block_samples))
        )

    remote = any(is_remote(file.storage) for file in files)
    threads = _INDEX_THREADS if remote else min(2, os.cpu_count() or 1)
    tables = [np.zeros(0, FIELDS)]
    damaged = []
    with ThreadPoolExecutor(threads) as pool:
        for number, (found, bad) in enumerate(pool.map(index, files)):
            tables.append(np.array([(number, *row) for row in found], FIELDS))
            damaged += [BadSample(files[number].key, *item) for item in bad]
    return TarRuns([file.key for file in files], np.concatenate(tables)), damaged
