"""Time and peak memory of a step, on CPU or CUDA."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from problems import OPERATIONS, Inputs, Shape, make_inputs, shape_for
from torch import Tensor

from gear_kernels.dispatch import ReadoutBackward, readout_backward

Step = Callable[[], None]


class Timing(NamedTuple):
    median_s: float
    low_s: float
    """First quartile."""
    high_s: float
    """Third quartile."""


def contender(name: str) -> tuple[str, str]:
    """Implementation, and what is different about it.

    `reference+compile`: torch.compile wraps the step; `triton+chunks` and `triton+whole`: the
    read-out's backward by `gear_kernels.dispatch.ReadoutBackward`, in place of its own choice.
    """
    implementation, _, suffix = name.partition("+")
    assert suffix in ("", "compile", "chunks", "whole"), name
    return implementation, suffix


def make_step(operation: str, name: str, inputs: Inputs) -> Step:
    """A step that leaves no gradients behind."""
    implementation, suffix = contender(name)
    function = OPERATIONS[operation]
    run = torch.compile(function) if suffix == "compile" else function
    choice = suffix if suffix in list(ReadoutBackward) else ReadoutBackward.AUTO

    def step() -> None:
        with readout_backward(choice):
            run(inputs, implementation)
        inputs.latents_NC.grad = inputs.codebook_KC.grad = None

    return step


def clock(device: str) -> Callable[[Step], float]:
    """Seconds of one step: CUDA events, or CPU seconds of this process (other processes' load
    on a shared machine moves these least)."""

    def cpu_seconds(step: Step) -> float:
        start = time.process_time()
        step()
        return time.process_time() - start

    def cuda_seconds(step: Step) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000

    return cuda_seconds if device == "cuda" else cpu_seconds


def time_side_by_side(steps: dict[str, Step], device: str, repeats: int) -> dict[str, Timing]:
    """Interleaved, so that a change of the machine's speed meets all contenders."""
    seconds_of = clock(device)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(3 if device == "cuda" else 1):
            step()
    for _ in range(repeats):
        for name, step in steps.items():
            seconds[name].append(seconds_of(step))
    return {name: summary(values) for name, values in seconds.items()}


def summary(seconds: list[float]) -> Timing:
    """Median and quartiles."""
    if len(seconds) == 1:
        return Timing(*seconds * 3)
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(median, low, high)


def peak_bytes(
    operation: str, name: str, shape: Shape, device: str, table_dtype: torch.dtype
) -> int:
    """Memory of one step beyond its inputs; on CPU call it in a process of its own.

    On CPU it is the growth of the process's largest resident size (Linux), after a small step has
    loaded what a first step loads.
    """
    small = shape_for(operation, Shape(64, 128, 8, 64))
    make_step(operation, name, make_inputs(small, device, table_dtype))()
    inputs = make_inputs(shape, device, table_dtype)
    step = make_step(operation, name, inputs)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # Sets the largest size back to the present one.
    Path("/proc/self/clear_refs").write_text("5")
    before = largest_resident_bytes()
    step()
    return largest_resident_bytes() - before


def largest_resident_bytes() -> int:
    """VmHWM. Not getrusage's maximum, which a child takes over from its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def contraction_floor(shape: Shape, table_KD: Tensor, device: str, repeats: int) -> Timing:
    """Two products of 2 N K D operations at the rate this machine's library reaches.

    The left operand is a block of rows, so that the floor itself needs no (N, K) matrix.
    """
    rows = min(shape.tokens, 1024)
    left = torch.rand(rows, shape.codes, device=device).to(table_KD.dtype)
    right = torch.rand(rows, shape.columns, device=device).to(table_KD.dtype)

    def step() -> None:
        for _ in range(0, shape.tokens, rows):
            left @ table_KD
            right @ table_KD.T

    return time_side_by_side({"floor": step}, device, repeats)["floor"]
