"""Progress on a terminal and in a log."""

import io
import math

import pytest

from gear_cluster.progress import ProgressPrinter
from gear_dist.distributed.worker_context import TrainProgress
from gear_dist.formatting import format_duration

METRICS = {
    "images_per_s": 151.96,
    "eta_s": 192.0,
    "l1": 0.0812,
    "cross_entropy": 2.2345,
    "learning_rate_generator": 1e-3,
    "codebook_usage": 0.871,
    "usage_window_tokens": 65536.0,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (192, "3m12s"),
        (7500, "2h05m"),
        (273_600, "3d04h"),
        (math.nan, "?"),
        (math.inf, "?"),
        (-1, "?"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_plain_lines_without_a_terminal() -> None:
    stream = io.StringIO()
    printer = ProgressPrinter(stream)
    printer.show(TrainProgress(20, 2900, "joint", METRICS))
    printer.show(TrainProgress(20, 2900, "joint", {}, "checkpoint runs/demo/checkpoints/20"))
    printer.close()
    assert stream.getvalue() == (
        "step 20/2900  stage joint  images/s 152.0  eta 3m12s  cross_entropy 2.235  l1 0.0812"
        "  usage 87% of codes in the last 65,536 tokens\n"
        "checkpoint runs/demo/checkpoints/20\n"
    )


def test_one_line_in_place_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    stream = Terminal()
    printer = ProgressPrinter(stream)
    printer.show(TrainProgress(20, 2900, "joint", METRICS))
    printer.show(TrainProgress(40, 2900, "joint", METRICS))
    assert "\n" not in stream.getvalue()
    lines = stream.getvalue().split("\r")[1:]
    assert [line.split(" 1%")[0] for line in lines] == ["joint 20/2900", "joint 40/2900"]
    assert all(len(line.removesuffix("\x1b[K")) == 59 for line in lines)
    printer.say("checkpoint")
    assert stream.getvalue().endswith("\ncheckpoint\n")
    printer.close()
    assert stream.getvalue().endswith("\ncheckpoint\n")


def test_eta_from_own_clock_where_the_worker_gives_none() -> None:
    now = [100.0]
    stream = io.StringIO()
    printer = ProgressPrinter(stream, clock=lambda: now[0])
    printer.show(TrainProgress(10, 100, "tokenizer", {"l1": 1.0}))
    now[0] = 110.0
    printer.show(TrainProgress(30, 100, "tokenizer", {"l1": 1.0}))
    first, second = stream.getvalue().splitlines()
    assert "eta ?" in first
    assert "eta 35s" in second  # 20 steps in 10 s, 70 to go


def test_unknown_metrics_are_shown_and_bookkeeping_is_not() -> None:
    stream = io.StringIO()
    odd = {"wobble": 1.5, "grad_norm_x": 3.0, "learning_rate_x": 1.0, "epoch": 2.0, "eta_s": 1.0}
    ProgressPrinter(stream).show(TrainProgress(1, 2, "joint", odd))
    assert stream.getvalue() == "step 1/2  stage joint  eta 1s  wobble 1.5\n"


def test_losses_that_are_not_finite_are_shown() -> None:
    stream = io.StringIO()
    ProgressPrinter(stream).show(TrainProgress(1, 2, "joint", {"l1": math.nan, "eta_s": math.nan}))
    assert stream.getvalue() == "step 1/2  stage joint  eta ?  l1 nan\n"
