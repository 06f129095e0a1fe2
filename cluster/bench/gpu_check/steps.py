"""The steps of `make gpu-check`, in their order: what each runs, and how long it may."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]


class Place(NamedTuple):
    """Where a check runs and writes."""

    device: str
    """cuda; cpu tries the check itself, with less of everything."""
    scratch: Path
    """What steps make for themselves and for one another."""
    result: Path
    """Where a step leaves its verdict and table, as `verdict.Verdict`; not all do."""

    @property
    def on_cuda(self) -> bool:
        """Whether this is the check, not its rehearsal."""
        return self.device == "cuda"


class Step(NamedTuple):
    """One step: a process of its own, so that a crash or a hang costs this step alone."""

    name: str
    about: str
    limit_s: int
    command: Callable[[Place], list[str]]
    needed: bool = False
    """Whether the others would tell nothing where it fails."""


def _script(name: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        words = [sys.executable, str(HERE / name), "--device", place.device]
        return [*words, "--scratch", str(place.scratch), "--result", str(place.result)]

    return command


def _kernel_bench(place: Place) -> list[str]:
    words = [sys.executable, "kernels/bench/run.py", "--device", place.device]
    words += ["--output", str(place.result.with_suffix(".md"))]
    if place.on_cuda:
        shapes = ["8192,16384,8,1280", "32768,16384,8,1280", "8192,16384,256,1280"]
        return [*words, "--operations", "joint", "--shapes", *shapes, "--repeats", "10"]
    return [*words, "--shapes", "64,256,8,32", "--repeats", "1"]


STEPS = (
    Step("versions", "versions, devices, doctor", 120, _script("versions.py"), needed=True),
    Step("kernel-tests", "kernels on the device against float64", 480, _script("kernel_tests.py")),
    Step(
        "resume",
        "dtypes, and stop and resume bit for bit: each quantizer, stage and ZeRO stage",
        480,
        _script("resume.py"),
    ),
    Step("kernel-bench", "codebook operations beside eager and compiled torch", 420, _kernel_bench),
    Step("step-cost", "joint step of B and XL against the plan", 480, _script("step_cost.py")),
    Step("stage-memory", "memory over the stages, at each ZeRO stage", 180, _script("memory.py")),
    Step("sampling", "sampling: tokens, batches, speed of B and XL", 300, _script("sampling.py")),
    Step("train", "the demonstration", 600, _script("demonstration.py")),
)
