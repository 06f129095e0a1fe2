"""Processes that WORLD_SIZE announces: who is waited for, and what ends the wait."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gear_cluster.launch import launch
from gear_cluster.rendezvous import Processes, is_first_process, read_processes
from gear_dist.config.loading import load_config
from gear_dist.distributed.worker_context import TrainResult
from gear_dist.errors import ConfigError, DataError
from gear_dist.runs.run_folder import RunFolder
from refusals import refused

PROGRAM = """
import sys
from gear_cluster import rendezvous
from gear_cluster.launch import launch
from gear_dist.config.loading import load_config
from gear_dist.errors import ConfigError
from gear_dist.distributed.worker_context import TrainResult

def worker(config, context):
    from gear_dist.distributed import collectives
    print(sorted(collectives.gather_objects(context.rank)))
    return TrainResult("done", 1)

rendezvous.WARN_AFTER_S, rendezvous.LIMIT_S = 0.2, float(sys.argv[2])
words = ["run.launcher=local", "run.device=cpu", "run.root=" + sys.argv[1]]
try:
    launch(load_config(None, words), worker)
except ConfigError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def announced(port: int, rank: int = 0, size: int = 2) -> dict[str, str]:
    names = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in names.items()}


def start(folder: Path, limit_s: float, port: int, rank: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), str(limit_s)],
        env=os.environ | announced(port, rank),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_waits_says_for_whom_and_hears_signals(
    tmp_path: Path, number: signal.Signals, rank: int
) -> None:
    port = free_port()
    with start(tmp_path, 60, port, rank) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert (
            f"WORLD_SIZE=2 is waiting at MASTER_ADDR=127.0.0.1 MASTER_PORT={port} for rank" in line
        )
        assert line.startswith(f"gear-dist: rank {rank} ")
        assert f"for rank {1 - rank};" in line
        process.send_signal(number)
        assert process.wait(60) == 75


def test_the_wait_has_a_limit(tmp_path: Path) -> None:
    with start(tmp_path, 0.5, free_port()) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "for rank 1;" in errors.splitlines()[-1]


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with (
        socket.create_server(("", 0)) as listener,
        start(tmp_path, 60, listener.getsockname()[1]) as process,
    ):
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "MASTER_PORT" in errors.splitlines()[-1]


def test_processes_that_come_late_are_met(tmp_path: Path) -> None:
    port = free_port()
    with start(tmp_path, 60, port, 0) as first:
        assert first.stderr is not None
        assert "for rank 1;" in first.stderr.readline()
        with start(tmp_path, 60, port, 1) as second:
            results = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert results == ["[0, 1]\n"] * 2


def test_data_are_looked_at_before_anyone_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in announced(free_port()).items():
        monkeypatch.setenv(name, value)
    words = ["run.launcher=local", f"run.root={tmp_path}", f"data.train={tmp_path}/none"]
    with refused(DataError, tmp_path / "none", "manifest/dataset.json", "gear-dist shard"):
        launch(load_config(None, words))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORLD_SIZE", "two"),
        ("WORLD_SIZE", "0"),
        ("WORLD_SIZE", "-2"),
        ("RANK", "2"),
        ("RANK", ""),
        ("RANK", "1.5"),
        ("MASTER_ADDR", ""),
        ("MASTER_PORT", ""),
        ("MASTER_PORT", "99999"),
        ("LOCAL_RANK", "x"),
    ],
)
def test_variables_that_say_nothing_are_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    for known, usual in (announced(29500) | {name: value}).items():
        monkeypatch.setenv(known, usual)
    with refused(ConfigError, f"{name}={value}" if value else name, "unset WORLD_SIZE"):
        read_processes()


def test_a_rank_left_behind_does_not_silence_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    assert is_first_process("ray")
    assert read_processes() == Processes(0, 1, 0)
    config = load_config(None, ["run.launcher=local", f"run.root={tmp_path}", "run.device=cpu"])
    assert launch(config, lambda config, host: TrainResult("done", host.rank)) == TrainResult(
        "done", 0
    )
    assert not RunFolder(config.run.folder).holds_run()
