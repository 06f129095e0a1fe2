"""What a corpus holds, from its manifest: classes, sizes, captions, duplicates."""

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from gear_data_prep.corpus_tools.duplicates import find_duplicates, find_shared
from gear_data_prep.sharding.manifest_writer import load_quarantine
from gear_dist.data.corpus_summary import read_contents, warn_of_empty_classes
from gear_dist.data.manifest import DatasetInfo, iterate_samples, load_manifest
from gear_dist.data.origins import count_licenses
from gear_dist.storage.base import Storage

_QUANTILES = (0, 5, 25, 50, 75, 95, 100)


class Distribution(NamedTuple):
    """Quantiles of a number."""

    name: str
    values: tuple[float, ...]
    """At 0, 5, 25, 50, 75, 95 and 100 %."""


class CorpusStats(NamedTuple):
    """What `gear-dist stats` tells."""

    address: str
    summary: str
    """Images, classes, images without a class and captions, in a line."""
    num_samples: int
    num_shards: int
    num_bytes: int
    classes: tuple[tuple[str, int], ...]
    """Name and samples, the most frequent first; samples without a class under `none`."""
    distributions: tuple[Distribution, ...]
    captions: tuple[tuple[int, int], ...]
    """Number of captions, and how many samples have so many."""
    num_duplicates: int
    """Images whose bytes came before."""
    num_shared: int
    """Samples whose image the other split holds too; -1: there is no other."""
    left_out: tuple[tuple[str, int], ...]
    """Kind, and how many samples were left out for it."""
    warnings: tuple[str, ...] = ()
    """What was probably not intended."""
    licenses: tuple[tuple[str, int], ...] = ()
    """Licence and images, the most frequent first; empty: the source states none."""
    subsets: tuple[tuple[str, int], ...] = ()
    """Part of the source and images."""
    caption_types: tuple[tuple[str, int], ...] = ()
    """Type of caption, and images that have one of it."""


def measure_corpus(storage: Storage, other: Storage | None = None) -> CorpusStats:
    """The statistics of a finished corpus, about 100 bytes of memory a sample.

    Args:
        storage: the corpus, one split.
        other: the other split, where there is one.

    Raises:
        DataError: there is none, or its manifest is damaged.
    """
    info, shards = load_manifest(storage)
    labels: Counter[int] = Counter()
    captions: Counter[int] = Counter()
    columns: dict[str, list[np.ndarray]] = {name: [] for name in _MEASURED}
    for table in iterate_samples(storage):
        labels.update(table["class_index"].to_numpy().tolist())
        captions.update(table["num_captions"].to_numpy().tolist())
        for name, measure in _MEASURED.items():
            columns[name].append(measure(table))
    report = load_quarantine(storage)
    left_out = Counter(report.get("kinds", {})) + Counter(report.get("skipped", {}))
    return CorpusStats(
        storage.address,
        read_contents(storage, info).describe(),
        info.num_samples,
        info.num_shards,
        sum(info.bytes for info in shards),
        tuple((_name(info.classes, label), count) for label, count in labels.most_common()),
        tuple(_distribution(name, parts) for name, parts in columns.items()),
        tuple(sorted(captions.items())),
        find_duplicates(storage).num_superfluous,
        -1 if other is None else len(find_shared(storage, other)),
        tuple(sorted(left_out.items())),
        tuple(_warn_of_classes(info, labels)),
        tuple(count_licenses(info)),
        tuple(sorted(info.subsets.items())),
        tuple(sorted(info.caption_types.items())),
    )


def _warn_of_classes(info: DatasetInfo, labels: Counter[int]) -> list[str]:
    # Validation is too small to have all of them.
    if info.settings.get("split") == "validation":
        return []
    empty = [name for number, name in enumerate(info.classes) if not labels[number]]
    return warn_of_empty_classes(info.classes, empty)


def _short_side(table: Any) -> np.ndarray:
    return np.minimum(table["width"].to_numpy(), table["height"].to_numpy())


def _aspect(table: Any) -> np.ndarray:
    return table["width"].to_numpy() / np.maximum(table["height"].to_numpy(), 1)


_MEASURED = {
    "short side, pixels": _short_side,
    "width / height": _aspect,
    "bytes an image": lambda table: table["bytes"].to_numpy(),
    "caption characters": lambda table: table["caption_chars"].to_numpy(),
}


def _name(classes: tuple[str, ...], label: int) -> str:
    return classes[label] if 0 <= label < len(classes) else "none"


def _distribution(name: str, parts: list[np.ndarray]) -> Distribution:
    values = np.concatenate(parts) if parts else np.zeros(1)
    found = np.percentile(values, _QUANTILES) if len(values) else np.zeros(len(_QUANTILES))
    return Distribution(name, tuple(round(float(value), 3) for value in found))


def describe_duplicates(stats: CorpusStats) -> str:
    """How many images are there more than once, in words."""
    within = f"{stats.num_duplicates:,} duplicates"
    return within if stats.num_shared < 0 else f"{within}, {stats.num_shared:,} in the other split"


def list_origins(stats: CorpusStats) -> list[tuple[str, tuple[tuple[str, int], ...]]]:
    """Titles and counts of what the source states of its images, as far as it does."""
    found = (
        ("Licences", stats.licenses),
        ("Parts of the source", stats.subsets),
        ("Types of captions", stats.caption_types),
    )
    return [(title, counts) for title, counts in found if counts]


def as_table(stats: CorpusStats, num_classes: int = 10) -> str:
    """The statistics as text for a terminal."""
    lines = [
        f"{stats.address}",
        f"{stats.summary}; {stats.num_shards:,} shards, "
        f"{stats.num_bytes / 1e6:,.1f} MB, {describe_duplicates(stats)}",
        "",
        f"{'quantile, %':24}" + "".join(f"{q:>10}" for q in _QUANTILES),
    ]
    for name, values in stats.distributions:
        lines.append(f"{name:24}" + "".join(f"{value:>10,.4g}" for value in values))
    lines += ["", f"{len(stats.classes)} classes, most and least frequent:"]
    shown = list(stats.classes)
    if len(shown) > num_classes:
        shown = shown[: num_classes // 2] + shown[-num_classes // 2 :]
    lines += [f"  {name:30} {count:>10,}" for name, count in shown]
    lines += ["captions a sample:"]
    lines += [f"  {number:30} {count:>10,}" for number, count in stats.captions]
    for title, counts in list_origins(stats):
        lines += [f"{title.lower()}:", *(f"  {name:30} {count:>10,}" for name, count in counts)]
    if stats.left_out:
        lines += ["left out:", *(f"  {kind:30} {count:>10,}" for kind, count in stats.left_out)]
    lines += [f"WARNING: {line}" for line in stats.warnings]
    return "\n".join(lines)
