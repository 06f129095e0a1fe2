"""Records come back from JSON with their types, or not at all."""

from typing import Any, Literal, NamedTuple

import pytest

from gear_dist.storage.json_files import build_record, parse_json
from refusals import refused


class _Inner(NamedTuple):
    name: str


class _Record(NamedTuple):
    count: int
    share: float
    names: tuple[str, ...]
    sizes: dict[str, int]
    inner: list[_Inner]
    state: Literal["on", "off"]
    anything: Any
    code: int | None = None


GOOD = {
    "count": 3,
    "share": 1,
    "names": ["a"],
    "sizes": {"x": 1},
    "inner": [{"name": "y"}],
    "state": "on",
    "anything": [None],
}


def test_a_record_comes_back() -> None:
    expected = _Record(3, 1, ("a",), {"x": 1}, [_Inner("y")], "on", [None])
    assert build_record(_Record, GOOD) == expected
    assert build_record(_Record, {**GOOD, "code": 2}).code == 2


@pytest.mark.parametrize(
    "change",
    [
        {"count": True},
        {"count": 1.0},
        {"count": None},
        {"count": "3"},
        {"share": "1"},
        {"names": "a"},
        {"names": [1]},
        {"sizes": {"x": None}},
        {"sizes": []},
        {"inner": [{}]},
        {"inner": [{"name": "y", "more": 1}]},
        {"state": "else"},
        {"state": []},
        {"code": "2"},
        {"unknown": 1},
    ],
)
def test_another_type_is_refused(change: dict[str, Any]) -> None:
    [key] = change
    if key == "inner":
        key = "more" if "more" in change[key][0] else "name"
    with refused(ValueError, key):
        build_record(_Record, {**GOOD, **change})


@pytest.mark.parametrize("node", [None, [], 3, "x", {}])
def test_what_is_no_record_is_refused(node: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        build_record(_Record, node)


def test_numbers_that_no_program_of_ours_writes_are_null() -> None:
    text = "[NaN, Infinity, -Infinity, 1e400, -1e400, 123456789012345678901234567890, 1.5, -7]"
    assert parse_json(text) == [None] * 6 + [1.5, -7]


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", "x", "[" * 100_000])
def test_what_is_no_json_is_refused(data: bytes | str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse_json(data)
