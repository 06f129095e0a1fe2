"""Measures whole training runs: what checkpoints cost, and two workers beside one.

Every figure comes from a run's own metrics, started through the front door as users start it; the
rounds alternate. Run as `make bench-training` (about 25 minutes on two cores).
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gear_dist.runs.environment import cpu_model, num_cores, package_versions

GEAR_DIST = (sys.executable, "-m", "gear_dist")
SETTINGS = """\
run: {device: cpu, threads: 1}
data: {image_size: 32}
tokenizer:
  codebook_size: 256
  channels: 48
  channel_multipliers: [1, 2, 2]
  num_res_blocks: 1
  latent_channels: 96
  norm_groups: 12
generator: {width: 96, num_layers: 4, num_heads: 4, num_classes: 16, tap_layer: 2}
discriminator: {width: 16, num_layers: 2}
losses: {lpips_weight: 0, gradient_weight: 1}
alignment: {soft_weight: 0, hard_weight: 0}
engine: {precision: fp32}
log: {every_steps: 10}
"""


class Measured(NamedTuple):
    """One run, from its first record to its last: start and end are not counted."""

    step_s: float
    images_per_s: float
    saves: list[dict[str, float]]
    """Of each checkpoint inside: blocked_s, took_s, part_bytes."""
    peak_mb: float
    """Resident memory of the started process at its highest."""


def run(folder: Path, name: str, overrides: Sequence[str], processes: int = 1) -> Measured:
    """Train once and read the run's records."""
    config = folder / "bench.yaml"
    config.write_text(SETTINGS)
    words = [f"run.root={folder}/runs", f"run.name={name}", f"data.train={folder}/corpus/train"]
    start: tuple[str, ...] = GEAR_DIST
    if processes > 1:
        start = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes))
        start = (*start, "-m", "gear_dist")
    command = [*start, "train", str(config), *words, *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_memory_monitor_refresh_ms": "0"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    first, last = records[0], records[-1]
    step_s = (last["time_s"] - first["time_s"]) / (last["step"] - first["step"])
    batch = next(int(w.partition("=")[2]) for w in overrides if w.startswith("engine.global_batch"))
    saves = [
        {key: record[f"checkpoint_{key}"] for key in ("blocked_s", "took_s", "part_bytes")}
        for record in records
        if "checkpoint_took_s" in record
    ]
    return Measured(step_s, batch / step_s, saves, usage.ru_maxrss / 1e3)


def measure_checkpoints(folder: Path, rounds: int) -> list[str]:
    """Steps of 0.3 s and more with a checkpoint every 50 of them, and without."""
    base = ["stages.joint.steps=160", "engine.global_batch=8", "run.launcher=local"]
    arms = {
        "none": ["checkpoint.every_steps=100000"],
        "every 50, asynchronous": ["checkpoint.every_steps=50"],
        "every 50, waiting": ["checkpoint.every_steps=50", "checkpoint.asynchronous=false"],
    }
    found: dict[str, list[Measured]] = {arm: [] for arm in arms}
    for i in range(rounds):
        for j, (arm, words) in enumerate(arms.items()):
            found[arm].append(run(folder, f"checkpoints-{j}-{i}", [*base, *words]))
    lines = [
        "| checkpoints | s a step | of none | blocked, s | took, s | part, MB | peak memory, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    none = statistics.median(m.step_s for m in found["none"])
    for arm, measured in found.items():
        step_s = statistics.median(m.step_s for m in measured)
        saves = [save for m in measured for save in m.saves]
        columns = (("blocked_s", 1, 3), ("took_s", 1, 2), ("part_bytes", 1e6, 1))
        cells = ["-"] * len(columns)
        if saves:
            cells = [
                f"{statistics.median(save[key] for save in saves) / scale:.{digits}f}"
                for key, scale, digits in columns
            ]
        cells.append(f"{statistics.median(m.peak_mb for m in measured):.0f}")
        lines.append(f"| {arm} | {step_s:.3f} | {step_s / none:.3f} | {' | '.join(cells)} |")
    return lines


def measure_workers(folder: Path, rounds: int) -> list[str]:
    """One worker, and two with the same batch each, a core a worker."""
    steps = ["stages.joint.steps=41", "checkpoint.every_steps=100000"]
    arms: dict[str, tuple[list[str], int]] = {
        "1, local": (["engine.global_batch=64", "run.launcher=local"], 1),
        "2, local (torchrun)": (["engine.global_batch=128", "run.launcher=local"], 2),
        "2, Ray": (["engine.global_batch=128", "run.workers=2"], 1),
    }
    found: dict[str, list[Measured]] = {arm: [] for arm in arms}
    for i in range(rounds):
        for j, (arm, (words, processes)) in enumerate(arms.items()):
            found[arm].append(run(folder, f"workers-{j}-{i}", [*steps, *words], processes))
    lines = ["| workers | s a step | images/s | of one |", "|---|---|---|---|"]
    one = statistics.median(m.images_per_s for m in found["1, local"])
    for arm, measured in found.items():
        step_s = statistics.median(m.step_s for m in measured)
        rate = statistics.median(m.images_per_s for m in measured)
        lines.append(f"| {arm} | {step_s:.2f} | {rate:.1f} | {rate / one:.2f} |")
    return lines


def _heading() -> str:
    versions = package_versions(("torch", "deepspeed", "ray"))
    known = ", ".join(f"{name} {version}" for name, version in versions.items())
    day = datetime.date.today().isoformat()
    command = " ".join(["python", "cluster/bench/run.py", *sys.argv[1:]])
    return f"{day}, {num_cores()} cores ({cpu_model()}), {known}. Command: `{command}`"


MEASURES = {"checkpoints": measure_checkpoints, "workers": measure_workers}


def main() -> None:
    """Make a corpus, measure, print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=[], help=f"some of {', '.join(MEASURES)}")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds (default: 3)")
    parser.add_argument("--out", type=Path, help="file that the tables are appended to")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gear-bench-") as scratch:
        folder = Path(scratch)
        sizes = ["--size", "32", "--train", "2000", "--validation", "64"]
        subprocess.run([*GEAR_DIST, "sample-corpus", f"{folder}/images", *sizes], check=True)
        subprocess.run([*GEAR_DIST, "shard", f"{folder}/images", f"{folder}/corpus"], check=True)
        for name in args.what or MEASURES:
            table = MEASURES[name](folder, args.rounds)
            text = "\n".join([_heading(), "", *table, ""])
            print(text)
            if args.out:
                with args.out.open("a") as file:
                    file.write(text + "\n")


if __name__ == "__main__":
    main()
