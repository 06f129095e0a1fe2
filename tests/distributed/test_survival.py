"""Workers that die, hang or must go: real processes, a worker function that counts steps."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from ray_nodes import kill_group, ray_nodes
from ray_training_case import GEAR_DIST, list_workers, make_case
from survival_case import counting, driver, prepare, step_of

from gear_dist.runs.run_folder import RunFolder

pytest.importorskip("ray")


def environment(total_steps: int = 40) -> dict[str, str]:
    """For drivers: no cluster of the user's, quiet Ray."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return kept | {
        "TOTAL_STEPS": str(total_steps),
        "OMP_NUM_THREADS": "1",
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def reached(step: int, world: int | None = None) -> Callable[[str], bool]:
    """Whether a line says that this step, or one after it, was taken (by so many workers)."""
    ending = "" if world is None else f"world {world}\n"
    return lambda line: step_of(line) >= step and line.endswith(ending)


def test_a_kill_and_a_hang_use_up_the_failures(tmp_path: Path) -> None:
    folder = prepare(tmp_path, "7 1 SIGKILL", "8 0 sleep")
    words = ("run.max_failures=1", "run.hang_timeout_s=8")
    with driver(counting(tmp_path, *words), environment(), timeout_s=200) as run:
        code, out = run.finish()
    assert code == 1, out
    start, first, last = [line for line in out.splitlines() if step_of(line) < 0]
    assert start.startswith("starting Ray")
    assert "of 2" in first
    assert first.endswith("(failure 1 of at most 1): attempt 2 resumes from step 5")
    assert "made no step within run.hang_timeout_s; stacks of all threads: logs in" in last
    assert last.endswith("(failure 2 without a new checkpoint)")
    # The one who sleeps is found in the stacks, at the line where it does.
    assert "in _suffer" in (folder.path / "logs" / "worker-0.log").read_text()
    status = folder.read_status()
    assert status is not None
    assert (status.state, status.step, status.exit_code, status.attempt) == ("failed", 8, 1, 2)
    assert "made no step" in status.reason
    assert "of 2" in status.last_failure


@pytest.mark.slow  # nodes that come and go
def test_a_node_that_is_to_go_and_a_new_one(tmp_path: Path) -> None:
    """Two workers, then one, then two, without a failure; no step is lost or taken twice."""
    folder = prepare(tmp_path)
    words = ("run.min_workers=1", "run.max_failures=0")
    with ray_nodes(environment(total_steps=5000)) as nodes:
        nodes.start_node()
        leaving = nodes.start_node()
        with driver(counting(tmp_path, *words), nodes.environment, timeout_s=300) as run:
            run.read_until(reached(7, world=2))
            leaving.send_signal(signal.SIGTERM)
            run.read_until(lambda line: "is draining: stopping with a" in line)
            run.read_until(reached(1, world=1))
            nodes.start_node()
            run.read_until(
                lambda line: line.startswith("capacity for 2 workers is available: attempt 3")
            )
            run.read_until(reached(1, world=2))
            run.process.send_signal(signal.SIGTERM)
            code, out = run.finish()
        assert code == 0, out
        assert leaving.wait(timeout=60) != 0
    assert out.splitlines()[-1].startswith("TrainResult(state='interrupted'")
    steps = [step_of(line) for line in out.splitlines() if step_of(line) > 0]
    assert steps == list(range(1, len(steps) + 1))
    status = folder.read_status()
    assert status is not None
    assert (status.attempt, status.last_failure) == (3, "")


@pytest.mark.slow  # the same with real training
def test_real_training_with_fewer_and_more_workers(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    command = [*GEAR_DIST, "train", str(case.config), *case.settings(tmp_path)]
    command += ["run.min_workers=1", "run.max_failures=0", "log.every_steps=1"]
    command += ["stages.joint.steps=5000"]
    with ray_nodes(case.environment) as nodes:
        nodes.start_node()
        leaving = nodes.start_node()
        with driver(command, nodes.environment, timeout_s=400) as run:
            run.read_until(reached(7))
            leaving.send_signal(signal.SIGTERM)
            run.read_until(lambda line: "is draining: attempt 2" in line)
            run.read_until(reached(8))
            nodes.start_node()
            run.read_until(
                lambda line: line.startswith("capacity for 2 workers is available: attempt 3")
            )
            run.read_until(reached(9))
            run.process.send_signal(signal.SIGTERM)
            code, out = run.finish()
    assert code == 75, out
    folder = RunFolder(tmp_path / "run")
    steps = [record["step"] for record in folder.read_metrics()]
    assert steps == list(range(1, len(steps) + 1))
    status = folder.read_status()
    assert status is not None
    assert (status.state, status.step, status.attempt) == ("interrupted", len(steps), 3)


@pytest.mark.slow  # six attempts
def test_whatever_happens_to_workers_they_go_on(tmp_path: Path) -> None:
    prepare(tmp_path, "7 1 SIGKILL", "12 0 sleep", "18 1 SIGTERM", "23 1 SIGSTOP", "28 0 SIGSEGV")
    words = ("run.max_failures=1", "run.hang_timeout_s=8")
    with driver(counting(tmp_path, *words), environment(), timeout_s=400) as run:
        code, out = run.finish()
    assert code == 0, out
    told = [line for line in out.splitlines() if ": attempt " in line]
    steps = [int(line.rpartition(" ")[2]) for line in told]
    heeded = steps[2]  # the signal's handler runs when Ray's main thread does
    assert steps == [5, 10, heeded, heeded if heeded > 20 else 20, 25]
    assert 18 < heeded < 24
    assert "worker 1 was sent SIGTERM: attempt 4" in told[2]
    assert all("(failure 1 of at most 1)" in line for line in told if "SIGTERM" not in line)
    assert "worker 0 of 2 made no step" in told[3]  # a stopped process writes no stacks


@pytest.mark.slow  # a node's loss takes Ray some time to see
def test_a_lost_node(tmp_path: Path) -> None:
    prepare(tmp_path)
    with ray_nodes(environment(total_steps=60)) as nodes:
        nodes.start_node()
        lost = nodes.start_node()
        with driver(counting(tmp_path), nodes.environment, timeout_s=300) as run:
            run.read_until(reached(7))
            kill_group(lost)
            run.read_until(lambda line: "waiting for capacity for 2 workers" in line)
            nodes.start_node()
            code, out = run.finish()
    assert code == 0, out
    (told,) = [line for line in out.splitlines() if ": attempt " in line]
    assert "(failure 1 of at most 3): attempt 2 resumes" in told
    assert "gloo" not in told


@pytest.mark.slow  # two drivers
def test_a_killed_driver(tmp_path: Path) -> None:
    """Its workers end by themselves, and the same command resumes."""
    folder = prepare(tmp_path)
    with driver(counting(tmp_path), environment(), timeout_s=200) as run:
        run.read_until(reached(7))
        workers = list_workers(run.process.pid)
        assert len(workers) == 2
        run.process.kill()
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert alive == []
    step = json.loads((folder.checkpoints / "latest.json").read_text())["step"]
    with driver(counting(tmp_path), environment(), timeout_s=200) as run:
        code, out = run.finish()
    assert code == 0, out
    assert [step_of(line) for line in out.splitlines()][1] == step + 1  # after "starting Ray"
    status = folder.read_status()
    assert status is not None
    assert status.attempt == 1


@pytest.mark.slow  # ten preemptions, each with a start of the workers
def test_ten_preemptions_within_grace(tmp_path: Path) -> None:
    """Both workers' node is drained ten times; seconds from SIGTERM to the stop are printed."""
    prepare(tmp_path)
    words = ("run.preemption_grace_s=10", "run.max_failures=0")
    seconds = []
    with ray_nodes(environment(total_steps=1000)) as nodes:
        leaving = nodes.start_node(cpus=2)
        with driver(counting(tmp_path, *words), nodes.environment, timeout_s=550) as run:
            for round_ in range(10):
                run.read_until(reached(1, world=2))
                if round_:
                    run.read_until(reached(step_of(run.lines[-1]) + 5))
                next_node = nodes.start_node(cpus=2)
                noticed = time.monotonic()
                leaving.send_signal(signal.SIGTERM)
                run.read_until(lambda line: ": attempt " in line)
                seconds.append(time.monotonic() - noticed)
                leaving = next_node
            os.killpg(run.process.pid, signal.SIGTERM)
            run.finish()
            assert run.process.returncode == 0
    # Past the grace an attempt is a failure, and none is allowed here.
    print("seconds from notice to the end of the attempt:", json.dumps(seconds))
