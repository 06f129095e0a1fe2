"""Ray Train runs the worker function: real worker processes, gloo between them."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gear_cluster.launch import launch
from gear_cluster.ray_train.driver import WorkerCrashError
from gear_dist.config.loading import load_config
from gear_dist.config.schema import RunConfig
from gear_dist.distributed.worker_context import TrainProgress, TrainResult, WorkerContext
from gear_dist.errors import ConfigError, DataError, UserError
from gear_dist.runs.run_folder import RunFolder
from refusals import refused

HERE = Path(__file__).parent

ray = pytest.importorskip("ray")

TOTAL_STEPS = 40


def make_config(root: Path, *overrides: str) -> RunConfig:
    return load_config(None, [f"run.root={root}", "engine.global_batch=4", *overrides])


def all_reduced(value: float) -> float:
    import torch

    tensor = torch.tensor([value])
    torch.distributed.all_reduce(tensor)
    return float(tensor)


def report(context: WorkerContext, step: int, metrics: dict[str, float]) -> None:
    if context.rank == 0:
        context.report(TrainProgress(step, TOTAL_STEPS, "joint", metrics))


def healthy(config: RunConfig, context: WorkerContext) -> TrainResult:
    import torch

    import gear_kernels  # noqa: F401 - importable in workers

    print(f"rank {context.rank} of {context.world_size} in {os.getcwd()}")
    report(context, 1, {"ranks_sum": all_reduced(context.rank + 1.0)})
    threads = all_reduced(
        float(os.environ["OMP_NUM_THREADS"] == "2" == str(torch.get_num_threads()))
    )
    report(context, 2, {"right_threads": threads})
    report(context, 3, {"on_cpu": all_reduced(float(os.environ["DS_ACCELERATOR"] == "cpu"))})
    return TrainResult("done", TOTAL_STEPS)


def polite(config: RunConfig, context: WorkerContext) -> TrainResult:
    for step in range(1, 1000):
        if all_reduced(float(context.stop_requested())) > 0:
            return TrainResult("interrupted", step, "asked")
        report(context, step, {"l1": 0.5})
        time.sleep(0.05)
    return TrainResult("done", 1000)


def user_error(config: RunConfig, context: WorkerContext) -> TrainResult:
    if context.rank == 1:
        raise DataError("data.train=/nowhere: no such corpus")
    all_reduced(0.0)
    return TrainResult("done", 1)


def crash(config: RunConfig, context: WorkerContext) -> TrainResult:
    if context.rank == 1:
        raise ValueError("first line\nsecond line")
    all_reduced(0.0)
    return TrainResult("done", 1)


def killed(config: RunConfig, context: WorkerContext) -> TrainResult:
    folder = RunFolder.create(config.run.folder, config)
    folder.write_status("running", 7, TOTAL_STEPS)
    all_reduced(0.0)
    if context.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    all_reduced(0.0)
    return TrainResult("done", 1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One local cluster for the tests that need no signals."""
    from gear_cluster.ray_train.cluster import ray_cluster

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    os.environ["RAY_memory_monitor_refresh_ms"] = "0"  # noqa: SIM112 - Ray's own spelling
    with ray_cluster(2, verbose=False):
        yield


@pytest.mark.usefixtures("cluster")
def test_two_workers_reduce_and_report(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = launch(make_config(tmp_path, "run.threads=2"), healthy)
    out, err = capfd.readouterr()
    assert result == TrainResult("done", TOTAL_STEPS)
    lines = out.splitlines()
    assert [line.split("  ")[-1] for line in lines] == [
        "ranks_sum 3",
        "right_threads 2",
        "on_cpu 2",
    ]
    assert err == ""
    logs = [tmp_path / "run" / "logs" / f"worker-{rank}.log" for rank in (0, 1)]
    assert [log.read_text().strip() for log in logs] == [
        f"rank {rank} of 2 in {os.getcwd()}" for rank in (0, 1)
    ]


@pytest.mark.usefixtures("cluster")
def test_user_error_keeps_class_and_message(tmp_path: Path) -> None:
    with refused(DataError) as caught:
        launch(make_config(tmp_path), user_error)
    assert str(caught.value) == "data.train=/nowhere: no such corpus"


@pytest.mark.usefixtures("cluster")
def test_crash_is_one_line_and_a_traceback_in_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        launch(make_config(tmp_path, "run.max_failures=0"), crash)
    log = tmp_path / "run" / "logs" / "worker-1.log"
    expected = f"worker 1 of 2 crashed: ValueError: first line; traceback in {log}"
    assert str(caught.value) == expected
    assert caught.value.exit_code == 1
    assert "in crash\n" in log.read_text()


@pytest.mark.usefixtures("cluster")
def test_killed_worker_is_named_and_status_corrected(tmp_path: Path) -> None:
    with refused(WorkerCrashError, "worker 1 of 2", "process"):
        launch(make_config(tmp_path, "run.max_failures=0"), killed)
    status = RunFolder(tmp_path / "run").read_status()
    assert status is not None
    assert (status.state, status.step, status.exit_code) == ("failed", 7, 1)
    assert "worker 1 of 2 died" in status.reason


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("override", "needles"),
    [
        ("run.device=cuda", ["run.device=cuda", "Ray", "GPU"]),
        ("run.workers=3", ["engine.global_batch=4", "engine.accumulation", "3 x 1"]),
    ],
)
def test_impossible_clusters_are_refused(tmp_path: Path, override: str, needles: list[str]) -> None:
    if int(ray.cluster_resources().get("GPU", 0)):
        pytest.skip("written for machines without a GPU")
    with refused(ConfigError, *needles):
        launch(make_config(tmp_path, override), healthy)


def test_ctrl_c_stops_a_local_worker(tmp_path: Path) -> None:
    """The whole way with a process of its own; Ray's is in test_ray_training.py."""
    program = (
        f"import sys; sys.path[:0] = {[str(HERE), str(HERE.parent / 'helpers')]!r}\n"
        "import test_ray_launch as here\n"
        "from gear_cluster.launch import launch\n"
        "from pathlib import Path\n"
        f"config = here.make_config(Path({str(tmp_path)!r}), 'run.launcher=local')\n"
        "print(launch(config, here.polite))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    watchdog = threading.Timer(100, process.kill)
    watchdog.start()
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step "):
            break
    process.send_signal(signal.SIGINT)
    last = process.communicate()[0].splitlines()[-1]
    watchdog.cancel()
    assert last.startswith("TrainResult(state='interrupted', step=")
    assert last.endswith("reason='asked')")
    assert process.returncode == 0
