"""ImageNet as distributed: ILSVRC2012_img_train.tar, a tar of one tar a class, and its val tar.

The validation tar has no classes. `labels` names a file that has them: one class name (wnid) a
line in the order of file names, or lines of a file name and its class, separated by a comma or
blanks; whatever follows is skipped, so that Kaggle's LOC_val_solution.csv can be used as it is.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gear_data_prep.samples import MAX_SAMPLE_BYTES, BadSample, RawSample
from gear_data_prep.sources.base import Source, make_splits
from gear_data_prep.sources.files import (
    Place,
    SourceFile,
    SourceOptions,
    find_files,
    is_remote,
    open_seekable,
    read_at,
)
from gear_data_prep.sources.index_cache import remember
from gear_data_prep.sources.labels import read_labels
from gear_data_prep.sources.tar_runs import (
    FIELDS,
    TarRun,
    TarRuns,
    index_runs,
)
from gear_data_prep.sources.webdataset_tars import parse_run
from gear_dist.data.tar_members import Member, TarDamageError, walk_members
from gear_dist.data.tar_samples import group_samples, is_hidden, sample_key
from gear_dist.errors import DataError
from gear_dist.storage.base import Storage


class ImageNetReader(NamedTuple):
    """Reads runs of images; their names are all that the tars hold besides."""

    storage: Storage
    remote: bool

    def read(self, unit: TarRun) -> list[RawSample]:
        """A run's images; DataError where the tar changed since it was listed."""
        data = self.storage.read_range(unit.key, unit.start, unit.length)
        samples = []
        for found in parse_run(unit, data):
            member = next(iter(found.members.values()))
            image = data[member.offset : member.offset + member.size]
            suffix = member.name.rpartition(".")[2].lower()
            name = f"{unit.key}/{member.name}"
            samples.append(RawSample(name, image, suffix, unit.class_index))
        return samples


def open_imagenet(place: Place, options: SourceOptions) -> Source:
    """List ILSVRC2012_img_train.tar and, where it is beside it, ILSVRC2012_img_val.tar.

    Any tar of tars will do: the inner tars' names are the classes.

    Raises:
        DataError: no such tars, labels that do not fit.
    """
    storage, only = place.storage, place.only
    found = find_files(storage, only, (".tar",))
    validation = [item for item in found if "_val" in item.key.lower()]
    train = [item for item in found if item not in validation]
    if len(train) != 1 or len(validation) > 1:
        raise DataError(
            f"{storage.address}: {len(found)} tars: expected ILSVRC2012_img_train.tar and, if "
            "wanted, ILSVRC2012_img_val.tar"
        )
    file = SourceFile(storage, *train[0])
    found_classes, rows, bad = remember(
        file, f"classes {options.block_samples}", lambda: _list_train(file, options.block_samples)
    )
    classes = tuple(found_classes)
    runs = TarRuns([file.key], np.array([tuple(row) for row in rows], FIELDS))
    damaged = [BadSample(*item) for item in bad]
    units: dict[str, Any] = {"train": runs}
    if validation:
        names = {name: number for number, name in enumerate(classes)}
        units["validation"], broken = _list_validation(
            SourceFile(storage, *validation[0]), options.labels, names
        )
        damaged += broken
    reader = ImageNetReader(storage, is_remote(storage))
    splits = make_splits(units, options.validation_share)
    return Source(storage.address, reader, classes, splits, tuple(damaged))


def _list_train(
    file: SourceFile, block_samples: int
) -> tuple[tuple[str, ...], list[tuple[int, ...]], list[BadSample]]:
    """Classes, rows of FIELDS, and what cannot be read."""
    rows: list[tuple[int, ...]] = []
    damaged = []
    with open_seekable(file.storage, file.key) as stream:
        read = read_at(stream)
        inner, damage = _collect(walk_members(read, 0, file.bytes, needs_end=True))
        inner = [member for member in inner if member.name.lower().endswith(".tar")]
        classes = tuple(sorted({_class_name(member) for member in inner}))
        index = {name: number for number, name in enumerate(classes)}
        for member in sorted(inner, key=_class_name):
            end = member.offset + member.size
            samples = group_samples(walk_members(read, member.offset, end, needs_end=True))
            found, bad, _ = index_runs(samples, block_samples, index[_class_name(member)])
            rows += [(0, *row) for row in found]
            damaged += [BadSample(f"{file.key}/{member.name}", *item) for item in bad]
    if damage:
        damaged.append(BadSample(file.key, "broken-tar", damage))
    if not rows:
        raise DataError(f"{file.storage.address}/{file.key}: no tars with images in it")
    return classes, rows, damaged


def _list_validation(
    file: SourceFile, labels: str, names: dict[str, int]
) -> tuple[TarRuns, list[BadSample]]:
    """Runs of one image each: neighbours in this tar are of different classes."""
    with open_seekable(file.storage, file.key) as stream:
        walk = walk_members(read_at(stream), 0, file.bytes, needs_end=True)
        members, damage = _collect(
            member
            for member in walk
            if not is_hidden(member.name) and member.size <= MAX_SAMPLE_BYTES
        )
    keys = sorted(sample_key(member.name) for member in members)
    class_of = read_labels(labels, keys, names) if labels else {}
    rows = [
        (0, m.start, m.end - m.start, number, 1, class_of.get(sample_key(m.name), -1))
        for number, m in enumerate(members)
    ]
    damaged = [BadSample(file.key, "broken-tar", damage)] if damage else []
    return TarRuns([file.key], np.array(rows, FIELDS)), damaged


def _collect(members: Iterator[Member]) -> tuple[list[Member], str]:
    """Members up to the first damage, and what that is."""
    found = []
    try:
        for member in members:
            found.append(member)
    except TarDamageError as error:
        return found, str(error)
    return found, ""


def _class_name(member: Member) -> str:
    return member.name.rpartition("/")[2].rpartition(".")[0]
