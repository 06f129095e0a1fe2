"""The samples of a corpus that a run takes, from its manifest: a bit a sample in memory. No torch.

The order of a run numbers the selected samples of each shard from 0; `original_rows` gives the
rows that these have in the shard.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from gear_dist.config.data import DataConfig
from gear_dist.data.corpus import Corpus
from gear_dist.data.corpus_summary import CorpusSummary, read_contents
from gear_dist.data.manifest import DatasetInfo, iterate_samples
from gear_dist.data.order import Window
from gear_dist.data.origins import (
    MAX_COUNTED,
    TYPE_SEPARATOR,
    UNKNOWN,
    count_licenses,
    iterate_origins,
    origins_keys,
)
from gear_dist.data.sample_filters import (
    LICENSE,
    SETTINGS,
    SUBSET,
    SampleFilters,
    matches_license,
)
from gear_dist.errors import DataError


class _Chosen(NamedTuple):
    """The selected samples of one corpus."""

    counts: np.ndarray
    """(num_shards,) int64."""
    bits: list[np.ndarray]
    """For each shard uint8, a bit a row."""
    num_without_class: int
    num_without_caption: int
    licenses: dict[str, int]
    """Samples by licence; those that state none under an empty text."""


class Selection:
    """Which rows of each shard are taken, over all corpora of a run; without filters all are."""

    def __init__(self, corpora: Sequence[Corpus], chosen: Sequence[_Chosen | None]) -> None:
        self._corpora, self._chosen = tuple(corpora), tuple(chosen)
        self.all_counts = np.concatenate([_all_counts(corpus) for corpus in corpora])
        """(num_shards,) samples of each shard, taken or not."""
        pairs = list(zip(corpora, chosen, strict=True))
        self.counts = np.concatenate([_all_counts(c) if f is None else f.counts for c, f in pairs])
        """(num_shards,) samples that are taken."""
        self._bits: list[np.ndarray | None] = []
        for corpus, found in pairs:
            self._bits += [None] * len(corpus.manifest.shards) if found is None else found.bits

    @property
    def identities(self) -> list[str]:
        """Of each corpus and of what is taken of it: equal ones mean the same samples."""
        return [
            corpus.manifest.info.plan_hash + (f" {_digest(found)}" if found else "")
            for corpus, found in zip(self._corpora, self._chosen, strict=True)
        ]

    def contents(self, number: int) -> CorpusSummary:
        """What is taken of a corpus, as `read_contents`."""
        corpus, found = self._corpora[number], self._chosen[number]
        everything = read_contents(corpus.storage, corpus.manifest.info)
        if found is None:
            return everything
        return everything._replace(
            num_samples=int(found.counts.sum()),
            num_without_class=found.num_without_class,
            num_without_caption=found.num_without_caption,
        )

    def licenses(self) -> list[tuple[str, int]]:
        """Licences of what is taken, the most frequent first; empty: no corpus states any."""
        total: Counter[str] = Counter()
        for number, found in enumerate(self._chosen):
            info = self._corpora[number].manifest.info
            pairs = dict(count_licenses(info)) if found is None else found.licenses
            num_taken = info.num_samples if found is None else int(found.counts.sum())
            total.update(pairs or {UNKNOWN: num_taken})
        total[UNKNOWN] += total.pop("", 0)
        if set(total) == {UNKNOWN}:
            return []
        return sorted(((n, c) for n, c in total.items() if c), key=lambda pair: (-pair[1], pair[0]))

    def rows(self, shard: int) -> np.ndarray | None:
        """The rows of a shard that are taken, in order; None: all."""
        bits = self._bits[shard]
        if bits is None:
            return None
        return np.flatnonzero(np.unpackbits(bits, count=int(self.all_counts[shard])))

    def original_rows(self, windows: Iterable[Window]) -> Iterator[Window]:
        """Windows whose rows number what is taken, as windows of rows of the shards."""
        for window in windows:
            rows = window.rows.copy()
            for shard in np.unique(window.shards):
                taken = self.rows(int(shard))
                if taken is not None:
                    here = window.shards == shard
                    rows[here] = taken[window.rows[here]]
            yield window._replace(rows=rows)


def select_samples(corpora: Sequence[Corpus], data: DataConfig) -> Selection:
    """Apply the filters of the settings to corpora, from their manifests' tables.

    Raises:
        DataError: a corpus does not tell what a filter asks for, or none of its samples is left.
    """
    chosen = [
        _select(corpus, _filters(data, number, len(corpora)))
        for number, corpus in enumerate(corpora)
    ]
    return Selection(corpora, chosen)


def _filters(data: DataConfig, number: int, num_corpora: int) -> SampleFilters:
    types = data.captions_of(number, num_corpora).types
    return SampleFilters(data.subsets, data.licenses, types, data.min_side)


def _select(corpus: Corpus, filters: SampleFilters) -> _Chosen | None:
    info, address = corpus.manifest.info, corpus.storage.address
    if not info.caption_types:
        filters = filters._replace(caption_types=())  # each sample is asked when it is read
    if filters == SampleFilters():
        return None
    _check_told(address, info, filters)
    counts = np.zeros(len(corpus.manifest.shards), np.int64)
    bits: list[np.ndarray] = [np.zeros(0, np.uint8)] * len(counts)
    without_class = without_caption = 0
    licenses: Counter[str] = Counter()
    for samples, taken, names in _taken_parts(corpus, filters):
        shards = samples["shard"].to_numpy()
        without_class += int((taken & (samples["class_index"].to_numpy() < 0)).sum())
        without_caption += int((taken & (samples["num_captions"].to_numpy() == 0)).sum())
        if names is not None:
            found = pc.value_counts(names.filter(pa.array(taken))).to_pylist()
            licenses.update({pair["values"]: pair["counts"] for pair in found})
        starts = np.flatnonzero(np.diff(shards, prepend=-1))
        for part, start in zip(np.split(taken, starts[1:]), starts, strict=True):
            number = int(shards[start])
            counts[number], bits[number] = part.sum(), np.packbits(part)
    if not counts.sum():
        settings = ", ".join(f"data.{name}={_shown(value)}" for name, value in _asked(filters))
        raise DataError(
            f"{address}: none of its {info.num_samples:,} samples is left by {settings}: loosen "
            f"them; it has {_describe(info)}"
        )
    return _Chosen(counts, bits, without_class, without_caption, dict(licenses))


def _taken_parts(
    corpus: Corpus, filters: SampleFilters
) -> Iterator[tuple[pa.Table, np.ndarray, pa.ChunkedArray | None]]:
    """Parts of the samples table, with a boolean and, where it is told, the licence of each row."""
    storage, info = corpus.storage, corpus.manifest.info
    origins = iterate_origins(storage, info)
    for samples in iterate_samples(storage):
        sides = np.minimum(samples["width"].to_numpy(), samples["height"].to_numpy())
        taken = sides >= filters.min_side
        table = next(origins, None)
        if table is not None:
            taken &= _column_test(table["split"], filters.takes_subset)
            taken &= _column_test(table["license"], filters.takes_license)
            taken &= _column_test(
                table["caption_types"],
                lambda joined: filters.takes_types(joined.split(TYPE_SEPARATOR)),
            )
        yield samples, taken, None if table is None else table["license"]


def _column_test(column: pa.ChunkedArray, test: Callable[[str], bool]) -> np.ndarray:
    """A test of each row's text; each text is tested once."""
    passing = [text for text in pc.unique(column).to_pylist() if test(text)]
    return pc.is_in(column, pa.array(passing, pa.string())).to_numpy()


def _check_told(address: str, info: DatasetInfo, filters: SampleFilters) -> None:
    """Refuse what would leave nothing because the corpus does not tell it, or is misspelt."""
    if info.schema_version == 0:
        name, value = _asked(filters)[0]
        raise DataError(
            f"{address}: data.{name}={_shown(value)} needs the manifest of `gear-dist shard`, and "
            "these are tars of others: shard them, which takes the same filters"
        )
    for kind, told in ((SUBSET, info.subsets), (LICENSE, info.licenses)):
        wanted = getattr(filters, SETTINGS[kind])
        if wanted and not (told and origins_keys(info)):
            raise DataError(
                f"{address}: data.{SETTINGS[kind]}={_shown(wanted)}, but the corpus states none: "
                f"shard it again from a source that does, or leave data.{SETTINGS[kind]} empty"
            )


def find_unmatched(infos: Sequence[DatasetInfo], data: DataConfig) -> list[str]:
    """A line for each value of a filter that no corpus has, such as a misspelt one."""
    tests: tuple[tuple[str, str, Callable[[str, str], bool]], ...] = (
        ("subsets", "subsets", lambda found, wanted: found.casefold() == wanted.casefold()),
        ("licenses", "licenses", matches_license),
    )
    lines = []
    for setting, counts, test in tests:
        told = sorted({name for info in infos for name in getattr(info, counts)})
        for wanted in getattr(data, setting):
            if told and len(told) < MAX_COUNTED and not any(test(name, wanted) for name in told):
                lines.append(
                    f"data.{setting}: no sample has {wanted}; there are {', '.join(told[:10])}"
                )
    return lines


def _asked(filters: SampleFilters) -> list[tuple[str, object]]:
    return [(name, value) for name, value in filters._asdict().items() if value]


def _shown(value: object) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


def _describe(info: DatasetInfo) -> str:
    parts = [
        f"{title} {', '.join(f'{name} ({count:,})' for name, count in counts.items())}"
        for title, counts in (
            ("licences", info.licenses),
            ("parts", info.subsets),
            ("caption types", info.caption_types),
        )
        if counts
    ]
    return "; ".join(parts) or "images of other sizes"


def _all_counts(corpus: Corpus) -> np.ndarray:
    return np.array([info.samples for info in corpus.manifest.shards], np.int64)


def _digest(chosen: _Chosen) -> str:
    digest = xxhash.xxh3_128()
    digest.update(chosen.counts.tobytes())
    for bits in chosen.bits:
        digest.update(bits.tobytes())
    return digest.hexdigest()
