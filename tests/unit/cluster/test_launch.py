"""Launching without Ray: what is refused, what the local launcher sets up, how it stops."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch

from gear_cluster import launch as launch_module
from gear_cluster.launch import launch
from gear_cluster.ray_train.attempt import worker_environment
from gear_cluster.ray_train.cluster import ray_cluster
from gear_cluster.signals import StopSignals
from gear_dist.config.loading import load_config
from gear_dist.config.run import RunSection
from gear_dist.config.schema import RunConfig
from gear_dist.distributed import device
from gear_dist.distributed.worker_context import TrainProgress, TrainResult, WorkerContext
from gear_dist.errors import ConfigError, DataError
from gear_dist.planning import memory_advice
from gear_dist.planning.memory_advice import DeviceMemoryError, Footprint, trace_footprint
from gear_dist.runs.run_folder import RunFolder
from gear_dist.training import trainer
from refusals import refused


def local_config(root: Path, *overrides: str) -> RunConfig:
    words = ["run.launcher=local", f"run.root={root}", "run.device=cpu", *overrides]
    return load_config(None, words)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001"])
def test_addresses_of_other_protocols_are_refused(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with (
        refused(ConfigError, f"RAY_ADDRESS={address}", "ray job submit"),
        ray_cluster(2, verbose=False),
    ):
        pass


def test_corpora_are_looked_for_before_ray_starts(tmp_path: Path) -> None:
    config = load_config(None, [f"run.root={tmp_path}", f"data.train={tmp_path}/none"])
    with refused(DataError, tmp_path / "none", "manifest/dataset.json", "gear-dist shard"):
        launch(config)
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


def test_workers_other_than_processes_are_refused(tmp_path: Path) -> None:
    with refused(ConfigError, "run.workers=2", "run.launcher=local", "torchrun"):
        launch(local_config(tmp_path, "run.workers=2"), lambda config, host: TrainResult("done", 1))


def test_local_worker_has_a_group_of_one_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    def worker(config: RunConfig, host: WorkerContext) -> TrainResult:
        dist = torch.distributed
        assert (host.rank, host.world_size, host.local_rank) == (0, 1, 0)
        assert (dist.get_rank(), dist.get_world_size(), dist.get_backend()) == (0, 1, "gloo")
        assert os.environ["MASTER_ADDR"] == "127.0.0.1"
        listening = [c.laddr for c in psutil.Process().net_connections() if c.status == "LISTEN"]
        assert int(os.environ["MASTER_PORT"]) in [port for _, port in listening]
        assert {ip for ip, _ in listening} == {"127.0.0.1"}
        host.report(TrainProgress(1, 2, "joint", {"l1": 0.5, "eta_s": 3.0}))
        return TrainResult("done", 2)

    assert launch(local_config(tmp_path), worker) == TrainResult("done", 2)
    assert capsys.readouterr().out == "step 1/2  stage joint  eta 3s  l1 0.5\n"
    assert not torch.distributed.is_initialized()
    assert "MASTER_ADDR" not in os.environ


def test_failure_corrects_a_status_that_says_running(tmp_path: Path) -> None:
    config = local_config(tmp_path)

    def worker(config: RunConfig, host: WorkerContext) -> TrainResult:
        RunFolder.create(config.run.folder, config).write_status("running", 5, 9)
        raise DataError("shard 3: gone")

    with pytest.raises(DataError):
        launch(config, worker)
    status = RunFolder(config.run.folder).read_status()
    assert status is not None
    assert status[:5] == ("failed", 5, 9, 3, "shard 3: gone")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def worker(config: RunConfig, host: WorkerContext) -> TrainResult:
        assert not host.stop_requested()
        os.kill(os.getpid(), number)
        assert host.stop_requested()
        return TrainResult("interrupted", 3, "asked")

    assert launch(local_config(tmp_path), worker).state == "interrupted"
    assert signal.getsignal(number) is before


def test_second_interrupt_insists_and_sigterm_does_not() -> None:
    insisted = []
    with StopSignals(lambda: insisted.append(1)) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert insisted == []
        os.kill(os.getpid(), signal.SIGINT)
    assert insisted == [1]
    assert stop.reason == "SIGTERM"


def test_another_thread_can_insist() -> None:
    insisted = []
    with StopSignals(lambda: insisted.append(threading.current_thread().name)) as stop:
        helper = threading.Thread(target=stop.force_stop_from_thread)
        helper.start()
        helper.join()
        time.sleep(0.1)
    assert insisted == ["MainThread"]


def test_signals_taken_by_others_are_taken_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals(lambda: None) as stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stop.install()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested.is_set()
    assert signal.getsignal(signal.SIGTERM) is before


def test_second_interrupt_ends_a_worker_that_hangs(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from gear_cluster.launch import launch\n"
        "from gear_dist.config.loading import load_config\n"
        "def worker(config, host):\n"
        "    for _ in range(2): os.kill(os.getpid(), signal.SIGINT)\n"
        "    raise AssertionError('still there')\n"
        f"launch(load_config(None, ['run.launcher=local', 'run.root={tmp_path}']), worker)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 75
    asked, stopped = done.stderr.split("\n\n")
    assert asked.startswith("gear-dist: SIGINT: stopping with a checkpoint; Ctrl-C again")
    assert stopped == "gear-dist: stopped at once, without a checkpoint\n"


def test_worker_environment_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    config = load_config(None, ["run.threads=3"])
    on_cpu, on_gpu = (
        worker_environment(config.run.threads, False),
        worker_environment(config.run.threads, True),
    )
    assert on_cpu["OMP_NUM_THREADS"] == on_gpu["OMP_NUM_THREADS"] == "3"
    assert (on_cpu["DS_ACCELERATOR"], on_cpu["CUDA_VISIBLE_DEVICES"]) == ("cpu", "")
    assert "DS_ACCELERATOR" not in on_gpu
    assert "CUDA_VISIBLE_DEVICES" not in on_gpu
    folders = on_cpu["PYTHONPATH"].split(os.pathsep)
    assert [Path(folder).name for folder in folders[1:4]] == ["kernels", "cluster", "data_prep"]
    assert folders[-1] == "/elsewhere"


def test_training_on_the_cpu_beside_a_gpu_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch_module, "gpu_driver", lambda: "535.1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    launch_module._warn_of_unseen_gpu(RunSection(device="cpu"))
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    launch_module._warn_of_unseen_gpu(RunSection())
    line = capsys.readouterr().out
    assert "driver 535.1" in line
    assert "run.device=cpu" in line


class OnCuda(NamedTuple):
    """A worker's context, of a machine whose device is imitated."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
)


def test_a_worker_refuses_what_its_device_does_not_hold(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before it trains, by estimate; and where the allocator ends it, without a traceback."""
    ends: list[Exception] = []

    def train_worker(config: RunConfig, context: object) -> TrainResult:
        raise ends.pop()

    traced = []

    def trace_once(config: RunConfig, world_size: int) -> Footprint:
        """It takes seconds each time."""
        traced[:] = traced or [trace_footprint(config, world_size)]
        return traced[0]

    monkeypatch.setattr(memory_advice, "trace_footprint", trace_once)
    monkeypatch.setattr(device, "choose_device", lambda *_: torch.device("cuda", 0))
    monkeypatch.setattr(trainer, "train_worker", train_worker)
    config = load_config(Path(__file__).parents[3] / "configs/tiny.yaml", [f"run.root={tmp_path}"])
    context: Any = OnCuda()
    memory = [1 << 20, 1 << 21]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: tuple(memory))
    with refused(DeviceMemoryError, "1.0", "2.0", "engine.accumulation=2"):
        launch_module.train(config, context)
    memory[1] = 1 << 40
    for error in OUT_OF_MEMORY:
        ends.append(error)
        with refused(DeviceMemoryError, str(error).split("\n")[0], "engine.accumulation=2"):
            launch_module.train(config, context)
    # Another process holds the memory, perhaps a dying worker: no reason to end for good.
    assert "WARNING: this run needs" in capsys.readouterr().out
    ends.append(RuntimeError("another"))
    with pytest.raises(RuntimeError, match="another"):
        launch_module.train(config, context)


def test_a_run_that_has_trained_is_not_estimated_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = load_config(Path(__file__).parents[3] / "configs/tiny.yaml", [f"run.root={tmp_path}"])
    folder = RunFolder.create(config.run.folder, config)
    folder.append_metrics({"step": 1})
    folder.close()
    result = object()
    monkeypatch.setattr(device, "choose_device", lambda *_: torch.device("cuda", 0))
    monkeypatch.setattr(trainer, "train_worker", lambda *_: result)
    context: Any = OnCuda()
    assert launch_module.train(config, context) is result
