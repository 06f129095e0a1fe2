"""The joint step of the published B and XL against the plan: time, memory, launches, waits.

Images are procedural, teacher and LPIPS at random: neither changes what a step costs.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from materials import make_corpus, make_lpips, make_teacher
from one_process import OneWorker, one_process
from verdict import Verdict, run_step, table

from gear_dist.config.loading import load_config
from gear_dist.config.schema import RunConfig
from gear_dist.planning.hardware import make_rates
from gear_dist.planning.plan import StagePlan, plan_costs
from gear_dist.training.trainer import open_trainer

ROOT = Path(__file__).resolve().parents[3]
WARM_UP, TIMED = 6, 10
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
MEMORY_OFF = 0.15
"""Share by which the peak may differ from the plan's before it is a problem."""


class Cost(NamedTuple):
    """One step on the device."""

    seconds: float
    peak_bytes: int
    launches: int
    waits: int
    """Calls by which the host waits for the device."""
    slowest: tuple[tuple[str, float], ...]
    """Operations with the most time of their own, milliseconds."""


def measure(config: RunConfig) -> Cost:
    """Steps of a run in this process: some timed, then one traced."""
    shutil.rmtree(config.run.folder, ignore_errors=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with open_trainer(config, OneWorker()) as trainer:
        batches, stage = iter(trainer.loader), trainer.stages[0]
        for _ in range(WARM_UP):
            trainer.run_step(stage, batches)
        started = _now()
        for _ in range(TIMED):
            trainer.run_step(stage, batches)
        seconds = (_now() - started) / TIMED
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        with _traced() as trace:
            trainer.run_step(stage, batches)
        return Cost(seconds, peak, *_read(trace[0]))


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def _traced() -> Iterator[list[Any]]:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    trace: list[Any] = []
    with torch.profiler.profile(activities=activities) as profiler:
        yield trace
        _now()
    trace.append(profiler.key_averages())


def _read(averages: Any) -> tuple[int, int, tuple[tuple[str, float], ...]]:
    """Launches, waits and the slowest operations of a trace."""
    launches = waits = 0
    on_cuda = torch.cuda.is_available()
    times = []
    for item in averages:
        if "LaunchKernel" in item.key:
            launches += item.count
        if item.key in WAITS:
            waits += item.count
        own = item.self_device_time_total if on_cuda else item.self_cpu_time_total
        times.append((item.key, own / 1e3))
    # The one wait at the end is the trace's own.
    slowest = sorted(times, key=lambda pair: -pair[1])[:8]
    return launches, max(0, waits - on_cuda), tuple(slowest)


def check(device: str, scratch: Path) -> Verdict:
    """B and XL at the published sizes; on a CPU two tiny configurations."""
    problems: list[str] = []
    rows, slowest = [], []
    with one_process(device):
        for name, config in _configs(device, scratch):
            found = measure(config)
            plan = plan_costs(config, world_size=1, rates=make_rates({}), on_cuda=device == "cuda")
            rows.append((name, *_cells(found, plan.stages[0], config.engine.global_batch)))
            slowest += [(name, key, f"{ms:.1f}") for key, ms in found.slowest]
            if device == "cuda":
                problems += _compare_memory(name, found, plan.stages[0])
    columns = (
        "generator | images | step, ms | planned, ms | images/s | peak, GiB | planned, GiB "
        "| launches | host waits"
    )
    lines = table(columns, rows) + ("",) + table("generator | operation | own time, ms", slowest)
    if device == "cuda":
        problems += _refusal(scratch)
    return Verdict(tuple(problems), lines)


def _cells(found: Cost, plan: StagePlan, images: int) -> tuple[object, ...]:
    return (
        images,
        f"{found.seconds * 1e3:.0f}",
        f"{plan.time.apart_s * 1e3:.0f}",
        f"{images / found.seconds:.1f}",
        f"{found.peak_bytes / 2**30:.1f}",
        f"{plan.memory.total_bytes / 2**30:.1f}",
        found.launches,
        found.waits,
    )


def _compare_memory(name: str, found: Cost, plan: StagePlan) -> list[str]:
    off = found.peak_bytes / plan.memory.total_bytes - 1
    return [f"{name}: peak memory is {off:+.0%} off the plan"] if abs(off) > MEMORY_OFF else []


def _configs(device: str, scratch: Path) -> Iterator[tuple[str, RunConfig]]:
    common = [f"run.root={scratch}/runs", "run.launcher=local", f"run.device={device}"]
    if device == "cpu":
        words = [*common, "run.name=cost-tiny", "stages.tokenizer.steps=0", "teacher.name=dinov2"]
        words += [f"data.train={make_corpus(scratch, 32, 256)}/train"]
        words += [f"teacher.path={make_teacher(scratch, tiny=True)}"]
        yield "tiny", load_config([ROOT / "configs/tiny.yaml"], words)
        yield (
            "tiny, ZeRO 2",
            load_config([ROOT / "configs/tiny.yaml"], [*words, "engine.zero_stage=2"]),
        )
        return
    words = [*common, f"data.train={make_corpus(scratch, 256, 512)}/train"]
    words += [f"teacher.path={make_teacher(scratch, tiny=False)}", *make_lpips(scratch)]
    for size, images in (("b", 32), ("xl", 16)):
        files = [ROOT / "configs/stage/joint.yaml", ROOT / f"configs/generator/{size}.yaml"]
        names = [f"run.name=cost-{size}", f"engine.global_batch={images}"]
        yield size, load_config(files, [*words, *names])


def _refusal(scratch: Path) -> list[str]:
    """The published batch on one GPU must be refused in a line that names what would help."""
    corpus = make_corpus(scratch, 256, 512)
    words = [f"data.train={corpus}/train", f"run.root={scratch}/runs", "run.name=too-large"]
    words += [f"teacher.path={make_teacher(scratch, tiny=False)}", *make_lpips(scratch)]
    command = [sys.executable, "-m", "gear_dist", "train", str(ROOT / "configs/stage/joint.yaml")]
    done = subprocess.run([*command, *words, "run.launcher=local"], capture_output=True, text=True)
    if done.returncode == 2 and "engine.accumulation" in done.stderr:
        return []
    last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
    return [f"256 images on one GPU ended with code {done.returncode}: {last}"]


if __name__ == "__main__":
    run_step(check)
