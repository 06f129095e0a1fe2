"""Measures sampling on the CPU beside the plain loop of an earlier revision, in one run.

LlamaGen-B with random weights, 256 tokens, guidance 4, fp32, one thread. Each side is a process of
its own, sides take turns, and speed is of CPU seconds, so that other work on the machine does not
count. Run as `make bench-sampling` (about four minutes on one core).
"""

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).parents[2]
BASELINE = "48b0aeb"
"""The last revision whose sampling is a plain loop over the training module."""
GUIDANCE = 4.0
NUM_CODES, GRID_SIZE = 16384, 16
MEGA = 1e6


class Measured(NamedTuple):
    """One side, at one batch size."""

    tokens_per_cpu_s: float
    tokens_per_s: float
    beyond_mb: float
    """Highest resident memory while sampling, beyond imports, weights and cache."""


def _resident(field: str) -> float:
    """A line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


def _random_head(generator: Any) -> Any:
    import torch

    torch.nn.init.normal_(generator.output.weight, std=0.02)
    return generator.eval()


Build = Callable[[], tuple[Any, Callable[[], None]]]
"""Gives a generator, and what samples with it."""


def _baseline(batch: int) -> Build:
    import torch
    from gear_dist.generator.sampling import sample  # type: ignore[import-not-found]
    from gear_dist.generator.transformer import Generator  # type: ignore[import-not-found]

    from gear_dist.config import GeneratorConfig, SamplingConfig  # type: ignore[attr-defined]

    def build() -> tuple[Any, Callable[[], None]]:
        sizes = {"num_codes": NUM_CODES, "grid_size": GRID_SIZE, "kernels": "torch"}
        generator = _random_head(Generator(GeneratorConfig(), **sizes))
        sampling = SamplingConfig(guidance=GUIDANCE)

        def run() -> None:
            sample(generator, torch.arange(batch), sampling, torch.Generator().manual_seed(0))

        return generator, run

    return build


def _now(batch: int) -> Build:
    import torch

    from gear_dist.config.models import GeneratorConfig, SamplingConfig
    from gear_dist.inference.decoding.engine import DecodingEngine
    from gear_dist.models.generator import ClassCondition
    from gear_dist.models.generator.transformer import Generator

    def build() -> tuple[Any, Callable[[], None]]:
        sizes = {"num_codes": NUM_CODES, "grid_size": GRID_SIZE}
        generator = _random_head(Generator(GeneratorConfig(), kernels="torch", **sizes))
        engine = DecodingEngine(generator, release=True)
        # Packs the weights, as the first images of a process do.
        list(engine.generate(ClassCondition(torch.arange(1)), [0], SamplingConfig(guidance=1.0)))
        sampling = SamplingConfig(guidance=GUIDANCE)

        def run() -> None:
            list(engine.generate(ClassCondition(torch.arange(batch)), range(batch), sampling))

        return generator, run

    return build


SIDES = {"baseline": _baseline, "now": _now}


def measure_side(side: str, batch: int) -> Measured:
    """In the worker process, with the side's packages on the path."""
    import torch

    torch.set_num_threads(1)
    torch.zeros(1) @ torch.zeros(1)
    build = SIDES[side](batch)  # imports only
    before = _resident("VmRSS")
    generator, run = build()
    config = generator.config
    weights = sum(p.numel() for p in generator.parameters()) * 4
    positions = GRID_SIZE**2 + (side == "baseline")
    cache = 2 * batch * config.num_layers * 2 * positions * config.width * 4
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    tokens = batch * GRID_SIZE**2
    beyond = _resident("VmHWM") - before - weights - cache
    return Measured(tokens / cpu, tokens / wall, beyond / MEGA)


def _start(side: str, tree: Path, batch: int) -> Measured:
    command = [sys.executable, "-P", str(Path(__file__)), "--side", side, "--tree", str(tree)]
    words = [*command, "--batch", str(batch)]
    output = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Measured(*json.loads(output.splitlines()[-1]))


def compare(rounds: int, batches: list[int]) -> list[str]:
    """A table of both sides; the earlier revision is checked out into a temporary folder."""
    found: dict[tuple[str, int], list[Measured]] = {}
    with tempfile.TemporaryDirectory(prefix="gear-bench-") as scratch:
        tree = Path(scratch) / "baseline"
        git = ["git", "-C", str(REPOSITORY), "worktree"]
        subprocess.run([*git, "add", "-q", "--detach", str(tree), BASELINE], check=True)
        try:
            for _ in range(rounds):
                for batch in batches:
                    for side, where in (("baseline", tree), ("now", REPOSITORY)):
                        measured = _start(side, where, batch)
                        found.setdefault((side, batch), []).append(measured)
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)
    lines = [
        "| batch | revision | tokens a CPU second | of the baseline | tokens/s | memory beyond "
        "weights and cache, MB |",
        "|---|---|---|---|---|---|",
    ]
    for batch in batches:
        base = statistics.median(m.tokens_per_cpu_s for m in found["baseline", batch])
        for side, name in (("baseline", BASELINE), ("now", "this one")):
            of = found[side, batch]
            cpu, wall, beyond = (statistics.median(values) for values in zip(*of, strict=True))
            ratio = f"{cpu / base:.2f}"
            lines.append(f"| {batch} | {name} | {cpu:.1f} | {ratio} | {wall:.1f} | {beyond:.0f} |")
    return lines


def _heading() -> str:
    from gear_dist.runs.environment import cpu_model, num_cores, package_versions

    known = ", ".join(f"{name} {version}" for name, version in package_versions(("torch",)).items())
    day = datetime.date.today().isoformat()
    command = " ".join(["python", "cluster/bench/sampling_run.py", *sys.argv[1:]])
    return f"{day}, {num_cores()} cores ({cpu_model()}), {known}. Command: `{command}`"


def main() -> None:
    """Measure, print a table; with --side, be the process that measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds (default: 3)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="(default: 1 8)")
    parser.add_argument("--out", type=Path, help="file that the table is appended to")
    for name, kind in (("--side", str), ("--tree", Path), ("--batch", int)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        sys.path[:0] = [str(args.tree), str(args.tree / "kernels")]
        print(json.dumps(measure_side(args.side, args.batch)))
        return
    text = "\n".join([_heading(), "", *compare(args.rounds, args.batches), ""])
    print(text)
    if args.out:
        with args.out.open("a") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
