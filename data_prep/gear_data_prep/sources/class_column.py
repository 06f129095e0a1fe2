"""Classes in a column of a table: indices, or names that indices are given to."""

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from gear_data_prep.sources.splits import class_name, similar_names
from gear_dist.errors import DataError

MAX_CLASSES = 1_000_000
"""Larger numbers are hashes or measurements, not classes."""

Label = int | str | None
"""What a cell says: an index, a name (which may be digits), or nothing."""

_NUMBER = re.compile(r"[+-]?[0-9]{1,19}(\.[0-9]*)?(e[+-]?[0-9]{1,3})?", re.IGNORECASE)
_NO_VALUE = {"nan", "null", "none", "na", "n/a"}
"""How programs write a cell without a value into a column of numbers."""


class ClassColumn(NamedTuple):
    """What the labels of a column stand for."""

    classes: tuple[str, ...]
    """Names by class index; empty: the column has indices."""
    indices: dict[Label, int]
    """Class of each label that has one."""
    note: str = ""
    """Why the column says no classes, for people."""

    def notes(self) -> tuple[str, ...]:
        """What may not be meant, for people."""
        return (*((self.note,) if self.note else ()), *similar_names(self.classes))

    def class_of(self, label: Label) -> int:
        """The class index of a label; -1: it has none."""
        return self.indices.get(label, -1)


def read_label(value: Any) -> Label:
    """A cell as a label; negative numbers, lists and text that is not UTF-8 are none."""
    if isinstance(value, float):
        # A column of integers with gaps is one of floats to most programs that write tables.
        value = None if not math.isfinite(value) else int(value) if value % 1 == 0 else str(value)
    if isinstance(value, int):
        return int(value) if value >= 0 else None
    return (class_name(value.strip()) or None) if isinstance(value, str) else None


def make_class_column(
    labels: Iterable[Label], names: tuple[str, ...], column: str, *, named: bool = True
) -> ClassColumn:
    """What the labels of a column stand for: indices where all are numbers, else names.

    Among numbers, negative ones and words such as `nan` and `null` are no class.

    Args:
        labels: all of the column, in any order.
        names: by class index, where they are given; without them names are sorted.
        column: its name, for people.
        named: whether the user chose the column; one that was guessed and holds fractions says
            no classes.

    Raises:
        DataError: a label that is not among the names given, or a number that is no class.
    """
    names = tuple(map(class_name, names))
    found = {
        label
        for label in labels
        if label is not None and (str(label).casefold() != "nan" or label in names)
    }
    numbers = {label: _number(label) for label in found if label not in names}
    is_text = {
        label
        for label, number in numbers.items()
        if number is None and str(label).casefold() not in _NO_VALUE
    }
    if is_text and names:
        raise DataError(f"column {column}: {min(is_text)} is not among the names of --classes")
    if is_text:
        names = tuple(sorted({str(label) for label in found}))
    else:
        fractions = [label for label, value in numbers.items() if value is not None and value % 1]
        if fractions:
            return _no_classes(column, min(fractions, key=str), named)
    given = {name: number for number, name in enumerate(names)}
    index: dict[Label, int] = {}
    for label in found:
        number = given.get(str(label), numbers.get(label))
        if number is not None and number >= 0:
            index[label] = int(number)
    too_large = [label for label, number in index.items() if number >= MAX_CLASSES]
    if too_large:
        raise DataError(
            f"column {column}: {min(too_large, key=str)} is too large for a class: name another "
            "--class-column"
        )
    return ClassColumn(names, index)


def _no_classes(column: str, fraction: Label, named: bool) -> ClassColumn:
    what = f"column {column} holds fractions such as {fraction}, which are no classes"
    if named:
        raise DataError(f"--class-column: {what}: name another one")
    return ClassColumn((), {}, f"{what}; --class-column names another")


def _number(label: Label) -> int | float | None:
    """The number that a label is, or spells: 3, "3" or "3.0"."""
    if not isinstance(label, str):
        return label
    if not _NUMBER.fullmatch(label):
        return None
    digits = label.removesuffix(".0")
    try:
        return int(digits)
    except ValueError:
        value = float(label)
        return value if math.isfinite(value) else None
