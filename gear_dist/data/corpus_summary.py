"""One-line summary of a corpus, and whether a run can be trained on it. No torch."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gear_dist.config.data import DataConfig
from gear_dist.data.manifest import DatasetInfo, iterate_samples
from gear_dist.errors import DataError
from gear_dist.storage.base import Storage

SHOWN_CLASSES = 5
"""Names that a line shows; of more the rest is counted."""


class CorpusSummary(NamedTuple):
    """Counts of one split."""

    num_samples: int
    classes: tuple[str, ...]
    """Names in the order of their indices."""
    num_without_class: int
    num_without_caption: int

    @property
    def num_with_caption(self) -> int:
        """Samples that have a caption."""
        return self.num_samples - self.num_without_caption

    def describe(self) -> str:
        """The line: images, classes with the first names, images without a class, captions."""
        parts = [f"{self.num_samples:,} images", _describe_classes(self.classes)]
        if self.classes and self.num_without_class:
            parts.append(f"{self.num_without_class:,} without a class")
        captions = f"{self.num_with_caption:,}" if self.num_with_caption else "none"
        return ", ".join([*parts, f"{captions} with a caption"])


def read_contents(storage: Storage, info: DatasetInfo) -> CorpusSummary:
    """The counts of a corpus: those of its dataset.json, else of its samples table.

    Raises:
        DataError: the corpus is of a version that did not count, and its table is damaged.
    """
    counts = (info.num_without_class, info.num_without_caption)
    if min(counts) < 0:
        counts = _count(storage)
    return CorpusSummary(info.num_samples, info.classes, *counts)


def classes_without_images(storage: Storage, contents: CorpusSummary) -> list[str]:
    """Names of the classes that no image of a corpus has; reads its samples table.

    Raises:
        DataError: the table is damaged.
    """
    found: set[int] = set()
    for table in iterate_samples(storage):
        found.update(np.unique(table["class_index"].to_numpy()).tolist())
    return [name for index, name in enumerate(contents.classes) if index not in found]


def warn_of_empty_classes(classes: Sequence[str], empty: Sequence[str]) -> list[str]:
    """A warning where classes have no image: a number that is none makes all below it classes.

    Args:
        classes: names of all.
        empty: names of those without an image.
    """
    if not empty:
        return []
    if list(empty) == [classes[0]]:
        return [
            f"class 0 ({empty[0]}) has no image: classes are numbered from 0, so subtract 1 where "
            "the numbers begin at 1; as it is, a generator learns nothing of class 0"
        ]
    names = ", ".join(empty[:SHOWN_CLASSES]) + (", ..." if len(empty) > SHOWN_CLASSES else "")
    return [
        f"{len(empty):,} of {len(classes):,} classes have no image ({names}): a generator learns "
        "nothing of them; see the report of bad images, and --class-column where the numbers are "
        "no classes"
    ]


def check_contents(
    address: str, contents: CorpusSummary, data: DataConfig, num_classes: int | None
) -> list[str]:
    """Whether a run can be trained on a corpus.

    Args:
        address: of the corpus.
        contents: its counts.
        data: whether captions are trained on, and how many bad samples are allowed.
        num_classes: classes of the generator; None: none is trained, so that no class is needed.

    Returns:
        Warnings: what can be trained so, but was probably not intended.

    Raises:
        DataError: classes or captions that the run needs are missing, or there are more classes
            than the generator has.
    """
    if num_classes is None:
        return []
    if len(contents.classes) > num_classes:
        raise DataError(
            f"{address}: has {len(contents.classes)} classes, which is more than "
            f"generator.num_classes={num_classes}: raise that to {len(contents.classes)}"
        )
    if data.captions == "off":
        return _check_classes(address, contents, num_classes)
    return _check_captions(address, contents, data)


def _check_classes(address: str, contents: CorpusSummary, num_classes: int) -> list[str]:
    if contents.num_without_class:
        raise DataError(
            f"{address}: {contents.num_without_class:,} of {contents.num_samples:,} images have no "
            "class label (an integer), and the generator is trained on classes: shard again with "
            "--labels, --class-column or folders of classes, leave such images out with "
            "--policy no-class=skip, or train on captions (data.captions=first)"
        )
    num_unused = num_classes - len(contents.classes)
    if not num_unused:
        return []
    return [
        f"{address}: has {_describe_classes(contents.classes)}, so {num_unused:,} of "
        f"generator.num_classes={num_classes} are never trained; if this is not intended, set "
        f"generator.num_classes={len(contents.classes)}"
    ]


def _check_captions(address: str, contents: CorpusSummary, data: DataConfig) -> list[str]:
    missing, total = contents.num_without_caption, contents.num_samples
    if missing == 0:
        return []
    if missing <= data.max_bad_share * total and missing < total:
        return [
            f"{address}: {missing:,} of {total:,} images have no caption and are replaced by "
            f"others (data.captions={data.captions})"
        ]
    raise DataError(
        f"{address}: {missing:,} of {total:,} images have no caption, and "
        f"data.captions={data.captions} needs one: shard again with --caption-column or with "
        "--policy no-caption=skip, raise data.max_bad_share, or set data.captions=off"
    )


def _count(storage: Storage) -> tuple[int, int]:
    without_class = without_caption = 0
    for table in iterate_samples(storage):
        without_class += int((table["class_index"].to_numpy() < 0).sum())
        without_caption += int((table["num_captions"].to_numpy() == 0).sum())
    return without_class, without_caption


def _describe_classes(classes: Sequence[str]) -> str:
    if not classes:
        return "no classes"
    names = ", ".join(classes[:SHOWN_CLASSES])
    more = ", ..." if len(classes) > SHOWN_CLASSES else ""
    return f"{len(classes):,} class{'es' if len(classes) > 1 else ''} ({names}{more})"
