"""A worker function that counts steps, and a driver of it: `python survival_case.py key=value ...`.

Its steps take a tenth of a second; every five of them it publishes a checkpoint. FAULTS in the
run folder names what happens to which rank at which step, once: lines `STEP RANK FAULT`, where
FAULT is `sleep`, `data` (an error of the user's) or the name of a signal.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from gear_dist.config.schema import RunConfig
from gear_dist.distributed.hang_watchdog import HangWatchdog
from gear_dist.distributed.worker_context import TrainProgress, TrainResult, WorkerContext
from gear_dist.errors import DataError
from gear_dist.runs.run_folder import RunFolder

TOTAL_STEPS = int(os.environ.get("TOTAL_STEPS", "40"))
CHECKPOINT_STEPS = 5
FAULTS = "faults.txt"


def count_steps(config: RunConfig, context: WorkerContext) -> TrainResult:
    """The worker function."""
    from gear_dist.distributed import collectives

    folder = RunFolder(config.run.folder)
    step = _read_step(folder)
    with HangWatchdog(config.run.hang_timeout_s) as hang:
        while step < TOTAL_STEPS:
            time.sleep(0.1)
            _suffer(folder, step, context.rank)
            stop = any(collectives.gather_objects(context.stop_requested()))
            step += 1
            hang.beat()
            if context.rank == 0:
                _record(folder, context, step, stop)
            if stop:
                return TrainResult("interrupted", step, "asked to stop")
    return TrainResult("done", step)


def _record(folder: RunFolder, context: WorkerContext, step: int, stop: bool) -> None:
    metrics = {"world": float(context.world_size)}
    context.report(TrainProgress(step, TOTAL_STEPS, "joint", metrics))
    folder.write_status("running", step, TOTAL_STEPS)
    if stop or step % CHECKPOINT_STEPS == 0:
        pointer = folder.checkpoints / "latest.json"
        pointer.with_suffix(".part").write_text(json.dumps({"step": step}))
        pointer.with_suffix(".part").rename(pointer)


def _read_step(folder: RunFolder) -> int:
    pointer = folder.checkpoints / "latest.json"
    return json.loads(pointer.read_text())["step"] if pointer.is_file() else 0


def _suffer(folder: RunFolder, step: int, rank: int) -> None:
    """Each fault happens once: whoever suffers it takes its line out before."""
    path = folder.path / FAULTS
    if not path.is_file():
        return
    faults = path.read_text().splitlines()
    mine = next((line for line in faults if line.startswith(f"{step} {rank} ")), None)
    if mine is None:
        return
    path.write_text("\n".join(line for line in faults if line != mine))
    fault = mine.split()[2]
    if fault == "sleep":
        time.sleep(1000)
    elif fault == "data":
        raise DataError("shard 3: gone")
    else:
        os.kill(os.getpid(), getattr(signal, fault))


class Driver(NamedTuple):
    """A driver process whose output is read line by line."""

    process: subprocess.Popen[str]
    lines: list[str]
    """What was read so far."""

    def read_until(self, found: Callable[[str], bool]) -> str:
        """The next line that is `found`; fails where the output ends before."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if found(line):
                return line
        raise AssertionError(f"the driver ended before:\n{''.join(self.lines)}")

    def finish(self) -> tuple[int, str]:
        """Exit code and all that was said."""
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)
        return self.process.wait(), "".join(self.lines)


@contextmanager
def driver(
    command: Sequence[str], environment: dict[str, str], *, timeout_s: float
) -> Iterator[Driver]:
    """A driver, killed after `timeout_s` and at the end of the block."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    watchdog = threading.Timer(timeout_s, process.kill)
    watchdog.start()
    try:
        yield Driver(process, [])
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()


def counting(root: Path, *words: str) -> list[str]:
    """The command that runs this file as a driver of two workers."""
    settings = ["run.workers=2", "run.device=cpu", f"run.root={root}", "engine.global_batch=4"]
    return [sys.executable, __file__, *settings, *words]


def step_of(line: str) -> int:
    """Of a progress line; -1 of another."""
    return int(line.split()[1].split("/")[0]) if line.startswith("step ") else -1


def prepare(root: Path, *faults: str) -> RunFolder:
    """The run folder with its faults, before the driver starts."""
    folder = RunFolder(root / "run")
    folder.checkpoints.mkdir(parents=True)
    (folder.path / FAULTS).write_text("\n".join(faults))
    return folder


def main(words: list[str]) -> int:
    """Train; print how it ended."""
    from gear_cluster.launch import launch
    from gear_dist.config.loading import load_config
    from gear_dist.errors import UserError

    try:
        print(launch(load_config(None, words), count_steps), flush=True)
    except UserError as error:
        print(f"gear-dist: {error}", flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
