"""Numbers, times and errors as people read them."""

import pytest

from gear_dist.formatting import class_and_line, first_line


@pytest.mark.parametrize(
    ("error", "line", "with_class"),
    [
        (ValueError("one\ntwo"), "one", "ValueError: one"),
        (ValueError("\n one "), "one", "ValueError: one"),
        (ValueError(), "ValueError", "ValueError"),
        (ValueError(" \n"), "ValueError", "ValueError"),
    ],
)
def test_an_error_has_a_line_even_without_a_message(
    error: Exception, line: str, with_class: str
) -> None:
    assert first_line(error) == line
    assert class_and_line(error) == with_class
