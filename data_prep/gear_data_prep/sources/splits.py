"""Groups files by split, and checks class names across splits."""

import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

from gear_dist.data.split_names import TEST, TRAIN, VALIDATION, split_of
from gear_dist.errors import DataError

_SHOWN = 5


class FileGroups(NamedTuple):
    """Files by split."""

    splits: dict[str, list[str]]
    """`train`, and `validation` where there is one."""
    notes: tuple[str, ...]
    """What is left out, for people."""


def group_by_split(names: Iterable[str], *, only: bool = False) -> FileGroups:
    """Files by split, from their names; those of a test split are left out.

    Args:
        only: SOURCE is the one file, whatever it is called.

    Raises:
        DataError: there are files, and none to train on.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(TRAIN if only else split_of(name), []).append(name)
    test = groups.pop(TEST, [])
    if TRAIN not in groups:
        found = (groups.get(VALIDATION) or test)[0]
        raise DataError(
            f"{found}: all files are called those of a validation or test split, and there is none "
            "to train on: rename them, or give a single file as SOURCE"
        )
    if not test:
        return FileGroups(groups, ())
    note = f"{len(test):,} files of a test split are left out, such as {test[0]}"
    return FileGroups(groups, (note,))


def class_name(text: str) -> str:
    """The class that a name stands for: what looks alike in Unicode is one class."""
    return unicodedata.normalize("NFC", text)


def check_validation_classes(address: str, train: set[str], validation: set[str]) -> None:
    """Raise DataError where validation has classes that train has not."""
    extra = sorted(validation - train)
    if extra:
        names = ", ".join(extra[:_SHOWN]) + (", ..." if len(extra) > _SHOWN else "")
        raise DataError(
            f"{address}: validation has {len(extra):,} classes that train has not: {names}; a "
            "class has one name in both (in folders, CLASS/NAME.jpg)"
        )


def similar_names(classes: Iterable[str]) -> tuple[str, ...]:
    """A note where names of classes differ by their case only."""
    by_name: dict[str, list[str]] = {}
    for name in classes:
        by_name.setdefault(name.casefold(), []).append(name)
    pairs = [" and ".join(names) for names in by_name.values() if len(names) > 1]
    if not pairs:
        return ()
    return (f"WARNING: {', '.join(pairs[:_SHOWN])} are different classes: they differ by case",)
