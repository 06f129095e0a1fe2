"""The helper that other tests hold errors with lets nothing pass that it should not."""

import pytest

from gear_dist.errors import ConfigError, DataError, UserError
from refusals import has_word, refused


class NarrowError(DataError):
    """One of a kind, which a caller may tell from the kind."""


class MisleadingError(DataError):
    exit_code = 5


def test_what_is_as_told_passes() -> None:
    with refused(DataError, "/x/a.tar", "data.max_bad_share", 5) as caught:
        raise DataError("/x/a.tar: class 5 is none: mend it, or raise data.max_bad_share")
    assert isinstance(caught.value, DataError), "and can be asked further"
    with refused(NarrowError, "a.tar"):
        raise NarrowError("a.tar: cut")
    with refused(ValueError, "C=3"):
        raise ValueError("C=3 is odd")


@pytest.mark.parametrize(
    ("kind", "needle", "error"),
    [
        (DataError, "a.tar", DataError("b.tar: cut")),
        (DataError, "a.tar", DataError("data.tar: cut")),
        (DataError, 1, DataError("16 images")),
        (DataError, "a.tar", NarrowError("a.tar: cut")),
        (ValueError, "a.tar", ConfigError("a.tar: cut")),
        (MisleadingError, "a.tar", MisleadingError("a.tar: cut")),
        (DataError, "a.tar", DataError("a.tar: cut\nTraceback")),
        (DataError, "a.tar", DataError("\x1b[31ma.tar: cut")),
        (DataError, "", DataError("")),
    ],
    ids=[
        "lacks",
        "other-file",
        "other-number",
        "subclass",
        "parent",
        "code",
        "lines",
        "colour",
        "empty",
    ],
)
def test_what_is_otherwise_fails(kind: type[Exception], needle: object, error: Exception) -> None:
    with pytest.raises(AssertionError), refused(kind, needle):
        raise error


def test_no_error_at_all_fails() -> None:
    with pytest.raises(pytest.fail.Exception), refused(UserError):
        pass


def test_another_kind_is_left_to_pytest() -> None:
    with pytest.raises(DataError, match="planted"), refused(ConfigError):
        raise DataError("planted")


@pytest.mark.parametrize(
    "needle", ["--kind", "no-class=skip", "data.train", "(3, 4)", "/x y/z.tar"]
)
def test_needles_of_any_form_are_found(needle: str) -> None:
    assert has_word(f"{needle}: use it", needle)
    assert has_word(f"one of {needle}", needle)
