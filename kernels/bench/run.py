"""Measures the codebook operations and writes a table: `python kernels/bench/run.py`.

Forward and backward, all contenders side by side in one process; memory each in its own.
"""

import argparse
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch
from measure import (
    Timing,
    contender,
    contraction_floor,
    make_step,
    peak_bytes,
    time_side_by_side,
)
from problems import OPERATIONS, Shape, make_inputs, reference_bytes, shape_for

RESULTS = Path(__file__).parent / "results"
CPU_SHAPES = [Shape(2048, 16384, 8, 1280)]
GPU_SHAPES = [
    Shape(8192, 16384, 8, 1280),
    Shape(32768, 16384, 8, 1280),
    Shape(8192, 65536, 8, 1280),
    Shape(8192, 262144, 8, 1280),
]
CONTENDERS = {
    "cpu": ["reference", "torch"],
    "cuda": ["reference", "reference+compile", "torch", "triton+chunks", "triton+whole"],
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Row(NamedTuple):
    operation: str
    shape: Shape
    contender: str
    timing: Timing
    memory_bytes: int


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device)
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=["joint"])
    parser.add_argument(
        "--shapes", nargs="+", type=Shape.parse, help="N,K,C,D; default: the device's list"
    )
    parser.add_argument("--table", choices=DTYPES, help="default: float32 on CPU, else bfloat16")
    parser.add_argument("--contenders", nargs="+", help="such as reference torch triton")
    parser.add_argument("--repeats", type=int, help="default: 5 on CPU, 30 on CUDA")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--output", type=Path, help="default: results/DEVICE.md")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    on_cpu = arguments.device == "cpu"
    arguments.shapes = arguments.shapes or (CPU_SHAPES if on_cpu else GPU_SHAPES)
    arguments.table = arguments.table or ("float32" if on_cpu else "bfloat16")
    arguments.contenders = arguments.contenders or CONTENDERS[arguments.device]
    arguments.repeats = arguments.repeats or (5 if on_cpu else 30)
    arguments.output = arguments.output or RESULTS / f"{arguments.device}.md"
    return arguments


def fits(name: str, shape: Shape, device: str) -> bool:
    """Whether the reference's matrices fit in half of the free memory."""
    if contender(name)[0] != "reference":
        return True
    if device == "cuda":
        free = torch.cuda.mem_get_info()[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return reference_bytes(shape) < free / 2


def measure_memory(operation: str, shape: Shape, name: str, arguments: argparse.Namespace) -> int:
    """`peak_bytes` in a fresh process."""
    command = [sys.executable, __file__, "--memory-of", name, "--operations", operation]
    command += ["--shapes", ",".join(map(str, shape)), "--device", arguments.device]
    command += ["--table", arguments.table, "--threads", str(arguments.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def measure(operation: str, base: Shape, arguments: argparse.Namespace) -> list[Row]:
    """All contenders of an operation at one shape, and the floor of the joint step."""
    shape = shape_for(operation, base)
    dtype = DTYPES[arguments.table]
    names = [name for name in arguments.contenders if fits(name, shape, arguments.device)]
    memory = {name: measure_memory(operation, shape, name, arguments) for name in names}
    inputs = make_inputs(shape, arguments.device, dtype)
    steps = {name: make_step(operation, name, inputs) for name in names}
    timings = time_side_by_side(steps, arguments.device, arguments.repeats)
    rows = [Row(operation, shape, name, timings[name], memory[name]) for name in names]
    if operation == "joint":
        floor = contraction_floor(shape, inputs.table_KD, arguments.device, arguments.repeats)
        rows.append(Row(operation, shape, "two products of 2NKD", floor, 0))
    return rows


def hardware(device: str) -> str:
    """Name of the processor that was measured."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.name == "posix" else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def header(arguments: argparse.Namespace) -> list[str]:
    """What a reader needs to repeat the measurement."""
    try:
        from triton import __version__ as triton_version
    except ImportError:
        triton_version = "absent"
    command = shlex.join(["python", "kernels/bench/run.py", *sys.argv[1:]])
    unit = "CUDA events" if arguments.device == "cuda" else "CPU seconds of the process"
    threads = "" if arguments.device == "cuda" else f", {arguments.threads} thread(s)"
    return [
        f"# Codebook operations on {hardware(arguments.device)}{threads}",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, torch {torch.__version__}, triton {triton_version}, "
        f"Python {platform.python_version()}. `{command}`",
        "",
        f"Forward and backward, {arguments.table} table, {arguments.repeats} interleaved repeats "
        f"({unit}); median [quartiles]. Memory: peak beyond the inputs. Ratios: to the reference.",
        "",
        "| operation | shape | contender | seconds | ratio | memory, MB | ratio |",
        "|---|---|---|---|---|---|---|",
    ]


def table_lines(rows: list[Row]) -> list[str]:
    """One line a row."""
    base = {(row.operation, row.shape): row for row in rows if row.contender == "reference"}
    lines = []
    for row in rows:
        reference = base.get((row.operation, row.shape))
        timing = row.timing
        time_ratio = memory_ratio = "-"
        if reference is not None:
            time_ratio = f"{timing.median_s / reference.timing.median_s:.2f}"
            memory_ratio = f"{row.memory_bytes / max(1, reference.memory_bytes):.3f}"
        seconds = f"{timing.median_s:.4g} [{timing.low_s:.4g}, {timing.high_s:.4g}]"
        cells = [row.operation, str(row.shape), row.contender, seconds, time_ratio]
        measured = row.memory_bytes > 0
        cells += [f"{row.memory_bytes / 1e6:.0f}", memory_ratio] if measured else ["-", "-"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        operation, shape = arguments.operations[0], arguments.shapes[0]
        dtype = DTYPES[arguments.table]
        print(peak_bytes(operation, arguments.memory_of, shape, arguments.device, dtype))
        return
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for shape in arguments.shapes:
        for operation in arguments.operations:
            found = measure(operation, shape, arguments)
            print("\n".join(table_lines(found)), flush=True)
            rows += found
            # Every time: a long run that is cut off leaves what it measured.
            arguments.output.write_text("\n".join([*header(arguments), *table_lines(rows)]) + "\n")
    print(f"written: {arguments.output}")


if __name__ == "__main__":
    main()
