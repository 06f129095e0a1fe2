"""Classes in a column of a table: indices, or names that indices are given to."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from gear_dist.errors import DataError

MAX_CLASSES = 1_000_000
"""Larger numbers are hashes or measurements, not classes."""

Label = int | str | None
"""What a cell says: an index, a name (which may be digits), or nothing."""


class ClassColumn(NamedTuple):
    """What the labels of a column stand for."""

    classes: tuple[str, ...]
    """Names by class index; empty: the column has indices."""
    indices: dict[Label, int]
    """Class of each label."""

    def class_of(self, label: Label) -> int:
        """The class index of a label; -1: it has none."""
        return self.indices.get(label, -1)


def read_label(value: Any) -> Label:
    """A cell as a label; negative numbers, lists and text that is not UTF-8 are none."""
    if isinstance(value, float):
        # A column of integers with gaps is one of floats to most programs that write tables.
        value = int(value) if value.is_integer() else str(value) if value == value else None
    if isinstance(value, int):
        return int(value) if value >= 0 else None
    return (value.strip() or None) if isinstance(value, str) else None


def make_class_column(labels: Iterable[Label], names: tuple[str, ...], column: str) -> ClassColumn:
    """What the labels of a column stand for: indices where all are numbers, else names.

    Args:
        labels: all of the column, in any order.
        names: by class index, where they are given; without them names are sorted.
        column: its name, for people.

    Raises:
        DataError: a label that is not among the names given, or a number too large for a class.
    """
    found = set(labels) - {None}
    numbers = {label: _number(label) for label in found}
    if names:
        given = {name: number for number, name in enumerate(names)}
        index = {label: given.get(str(label), numbers[label]) for label in found}
    elif None in numbers.values():
        names = tuple(sorted({str(label) for label in found}))
        given = {name: number for number, name in enumerate(names)}
        index = {label: given[str(label)] for label in found}
    else:
        index = numbers
    for label, number in sorted(index.items(), key=str):
        if number is None:
            raise DataError(f"column {column}: {label} is not among the names of --classes")
        if number >= MAX_CLASSES:
            raise DataError(
                f"column {column}: {label} is too large for a class: name another --class-column"
            )
    return ClassColumn(
        names, {label: number for label, number in index.items() if number is not None}
    )


def _number(label: Label) -> int | None:
    """The index that a label is, or spells: 3, "3" or "3.0"."""
    if not isinstance(label, str):
        return label
    digits = label.removesuffix(".0")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 20 else None
