"""Classes in a table's column, whatever type the column has."""

import pytest

from gear_data_prep.sources.class_column import make_class_column, read_label
from gear_dist.errors import DataError
from refusals import refused


def read(values: list, names: tuple[str, ...] = ()) -> tuple[tuple[str, ...], list[int]]:
    labels = [read_label(value) for value in values]
    column = make_class_column(labels, names, "label")
    return column.classes, [column.class_of(label) for label in labels]


@pytest.mark.parametrize(
    ("values", "classes", "indices"),
    [
        ([2, 0, 10], (), [2, 0, 10]),
        (["2", "0", "10"], (), [2, 0, 10]),
        (["2.0", "", "0.0"], (), [2, -1, 0]),
        ([2.0, float("nan"), 0.0], (), [2, -1, 0]),
        ([True, False, None], (), [1, 0, -1]),
        ([-1, 3, None], (), [-1, 3, -1]),
        (["dog", "cat", " dog ", None, ""], ("cat", "dog"), [1, 0, 1, -1, -1]),
        (["dog", "7", "-1"], ("-1", "7", "dog"), [2, 1, 0]),
        (["2", "-1", "0.0", "-1.0", "1e0"], (), [2, -1, 0, -1, 1]),
        (["2", "nan", "NaN", "null", "None", "", "0"], (), [2, -1, -1, -1, -1, -1, 0]),
        (["dog", "nan", "none"], ("dog", "none"), [0, -1, 1]),
        ([float("inf"), 1.0], (), [-1, 1]),
        ([[1], {"a": 1}, b"\xff"], (), [-1, -1, -1]),
        (["²", "1"], ("1", "²"), [1, 0]),
        ([], (), []),
    ],
)
def test_labels(values: list, classes: tuple[str, ...], indices: list[int]) -> None:
    assert read(values) == (classes, indices)


def test_names_that_are_given_decide_the_order() -> None:
    assert read(["dog", "cat", "1", 0], ("dog", "cat")) == (("dog", "cat"), [0, 1, 1, 0])
    assert read(["10", "2"], ("10", "2")) == (("10", "2"), [0, 1]), "names that are numbers"
    with refused(DataError, "column label", "bird", "--classes"):
        read(["dog", "bird"], ("dog", "cat"))


def test_numbers_that_are_no_classes_are_refused() -> None:
    with refused(DataError, "column label", 1 << 40, "--class-column"):
        read([3, 1 << 40])


@pytest.mark.parametrize("values", [[0.5, 1.25], ["0.5", "1"], ["1e-05", "nan", "2"]])
def test_fractions_are_no_classes(values: list) -> None:
    with refused(DataError, "column label", values[0], "--class-column"):
        read(values)
    labels = [read_label(value) for value in values]
    guessed = make_class_column(labels, (), "label", named=False)
    assert (guessed.classes, guessed.indices) == ((), {})
    assert "label" in guessed.note
