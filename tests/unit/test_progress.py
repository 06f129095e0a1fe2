"""The line that tells how long work takes, and the estimate in it."""

import io
import math

import pytest

from gear_dist.progress import Pace, StatusLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds that only a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_come_no_faster_than_asked() -> None:
    stream, clock = io.StringIO(), Clock()
    line = StatusLine(stream, every_s=10, clock=clock)
    for clock.now in (1.0, 9.9, 10.0, 15.0, 19.9, 20.0):
        line.update(lambda: f"at {clock.now:g}")
    assert stream.getvalue() == "at 10\nat 20\n"


def test_each_update_is_shown_where_no_seconds_are_given() -> None:
    stream = io.StringIO()
    line = StatusLine(stream)
    line.update(lambda: "one")
    line.update(lambda: "two")
    assert stream.getvalue() == "one\ntwo\n"


def test_a_terminal_has_one_line_that_is_cut_to_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    stream = Terminal()
    line = StatusLine(stream)
    line.update(lambda: "x" * 50)
    assert stream.getvalue() == "\r" + "x" * 29 + "\x1b[K"
    line.close(erase=True)
    line.say("done")
    assert stream.getvalue().endswith("\r\x1b[Kdone\n")


def test_a_line_is_built_only_where_it_is_shown() -> None:
    built = []
    line = StatusLine(io.StringIO(), every_s=10, clock=lambda: 0.0)
    line.update(lambda: built.append(1) or "")
    assert not built


def test_time_left_counts_only_timed_work() -> None:
    clock = Clock()
    pace = Pace(1000, clock=clock)
    assert math.isnan(pace.left_s)
    clock.now = 2.0
    pace.add(200)
    pace.add(300, timed=False)
    assert (pace.done, pace.per_s, pace.left_s) == (500, 100.0, 5.0)


def test_time_left_is_unknown_without_a_total() -> None:
    clock = Clock()
    pace = Pace(0, clock=clock)
    clock.now = 1.0
    pace.add(5)
    assert math.isnan(pace.left_s)
