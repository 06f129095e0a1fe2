"""`gear-dist train` on Ray: real training, Ctrl-C, and the same command again."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_training_case import GEAR_DIST, Case, list_workers, make_case
from safetensors.torch import load_file

from gear_dist.runs.run_folder import RunFolder

TOTAL_STEPS = 24


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """Temporary files of the commands go to a folder of their own, which must end up empty."""
    case = make_case(tmp_path_factory.mktemp("ray-training"))
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="gt-") as temporary:
        yield case._replace(environment=case.environment | {"TMPDIR": temporary})


def leftovers(case: Case) -> list[str]:
    """What Ray's clusters and the launcher have left behind."""
    return [name for name in os.listdir(case.environment["TMPDIR"]) if name.startswith("gear-")]


def start(case: Case, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*GEAR_DIST, "train", str(case.config), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=case.environment,
        start_new_session=True,
    )


def test_interrupted_resumed_and_killed_equals_straight(case: Case, tmp_path: Path) -> None:
    words = case.settings(tmp_path)
    process = start(case, *words)
    watchdog = threading.Timer(200, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if line.startswith("step 4/"):
                break
        signal_group(process)
        rest, _ = process.communicate()
    finally:
        watchdog.cancel()
    assert process.returncode == 75, "".join(seen) + rest
    folder = RunFolder(tmp_path / "run")
    status = folder.read_status()
    assert status is not None
    assert (status.state, status.exit_code) == ("interrupted", 75)
    assert 4 <= status.step < TOTAL_STEPS
    assert f"interrupted at step {status.step} " in rest
    expected_starts = (
        "starting Ray",
        "step ",
        "gear-dist: SIGINT: stopping",
        "checkpoint ",
        "interrupted at ",
    )
    noise = [line for line in (*seen, *rest.splitlines()) if not line.startswith(expected_starts)]
    assert noise == []
    assert any(folder.checkpoints.iterdir())

    again = start(case, *words)
    out = kill_worker_and_wait(again, status.step)
    assert again.returncode == 0, out
    assert f": attempt 2 resumes from step {status.step}\n" in out
    steps = [int(line.split()[1].split("/")[0]) for line in out.splitlines() if line[:5] == "step "]
    assert min(steps) > status.step - 2
    assert steps[-1] == TOTAL_STEPS
    recorded = [record["step"] for record in folder.read_metrics()]
    assert recorded == sorted(set(recorded))
    assert recorded[-1] == TOTAL_STEPS
    final = folder.read_status()
    assert final is not None
    assert (final.state, final.attempt) == ("done", 2)
    assert "of 2" in final.last_failure, out
    assert leftovers(case) == []

    straight = train_under_torchrun(case, "run.name=straight", *words)
    for name in ("tokenizer", "generator"):
        expected = load_file(straight.weights / f"{name}.safetensors")
        found = load_file(folder.weights / f"{name}.safetensors")
        assert expected.keys() == found.keys()
        assert [key for key in found if not found[key].equal(expected[key])] == []


def kill_worker_and_wait(process: subprocess.Popen[str], start_step: int) -> str:
    """Kill a worker in the midst of the steps that follow; what the command says to its end."""
    watchdog = threading.Timer(300, process.kill)
    watchdog.start()
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith("step ") and int(line.split()[1].split("/")[0]) > start_step:
            list_workers(process.pid)[1].kill()
            break
    rest, _ = process.communicate()
    watchdog.cancel()
    return "".join(seen) + rest


def train_under_torchrun(case: Case, *words: str) -> RunFolder:
    """The same training by the other launcher, undisturbed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", "-m", "gear_dist", "train", str(case.config), *words]
    done = subprocess.run(
        [*command, "run.launcher=local"],
        env=case.environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"done: {TOTAL_STEPS} steps")
    root = next(word.split("=")[1] for word in words if word.startswith("run.root="))
    return RunFolder(Path(root) / "straight")


def signal_group(process: subprocess.Popen[str]) -> None:
    """Ctrl-C as a terminal sends it: to every process of the group."""
    os.killpg(process.pid, signal.SIGINT)


def test_interrupted_while_ray_starts(case: Case, tmp_path: Path) -> None:
    process = start(case, *case.settings(tmp_path))
    deadline = time.monotonic() + 60
    while not leftovers(case) and time.monotonic() < deadline:
        time.sleep(0.1)
    signal_group(process)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 75, out
    assert "the workers had not started" in out
    assert "Traceback" not in out
    assert leftovers(case) == []


def test_data_error_keeps_its_exit_code(case: Case, tmp_path: Path) -> None:
    words = [*case.settings(tmp_path), f"data.train=file://{tmp_path}/nowhere"]
    process = start(case, *words)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 3
    lines = out.strip().splitlines()
    assert len(lines) == 1, out
    assert lines[0].startswith(f"gear-dist: file://{tmp_path}/nowhere: no sharded corpus is there")
