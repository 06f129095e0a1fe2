"""`ray job submit --working-dir .` against a real local head with its job server."""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ray_training_case import Case, make_case

from gear_dist.runs.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
UPLOADED = ("gear_dist", "kernels", "cluster", "data_prep", "configs", "pyproject.toml")
START_SECONDS = 90.0


class Head(NamedTuple):
    """A running head."""

    address: str
    """Of the job server."""
    case: Case


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """`ray start --head` with its own ports and folder; ended by its own process group."""
    case = make_case(tmp_path_factory.mktemp("job-submit"))
    # Ray's sockets need a short path.
    folder = tempfile.mkdtemp(prefix="gear-head-")
    gcs, dashboard, agent, client = free_ports(4)
    command = ["ray", "start", "--head", "--block", f"--port={gcs}", f"--temp-dir={folder}"]
    command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command += ["--dashboard-host=127.0.0.1", f"--ray-client-server-port={client}"]
    command += ["--num-cpus=2", f"--object-store-memory={100 * 2**20}"]
    with open(Path(folder) / "head.log", "w") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env=case.environment | {"RAY_AUTH_MODE": "disabled"},
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{dashboard}"
        wait_for_job_server(address, Path(folder) / "head.log")
        yield Head(address, case)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_job_server(address: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            list_jobs(address)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"no job server within {START_SECONDS} s:\n{log.read_text()}")


def list_jobs(address: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{address}/api/jobs/", timeout=10) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user submits: the packages, and beside them what must not be uploaded."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in UPLOADED:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, ignore=ignore)
        else:
            shutil.copy(source, folder / name)
    shutil.copy(ROOT / ".gitignore", folder)
    for heavy in (".venv/lib", ".gear/object_store", "runs/old"):
        (folder / heavy).mkdir(parents=True)
        # Above Ray's limit for one file, so that an upload of it would fail.
        with open(folder / heavy / "heavy.bin", "wb") as file:
            file.truncate(600 * 2**20)
    return folder


def submit(head: Head, checkout: Path, *words: str) -> tuple[int, str, dict[str, Any]]:
    """Submit from the checkout, wait; (exit code, output, job's details)."""
    known = {job["submission_id"] for job in list_jobs(head.address)}
    done = subprocess.run(
        ["ray", "job", "submit", "--address", head.address, "--working-dir", ".", "--", *words],
        cwd=checkout,
        env=head.case.environment | {"RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    (job,) = [job for job in list_jobs(head.address) if job["submission_id"] not in known]
    return done.returncode, done.stdout + done.stderr, job


def test_trains_with_two_workers(head: Head, checkout: Path, tmp_path: Path) -> None:
    shutil.copy(head.case.config, checkout / "configs" / "tiny.yaml")
    marker = "used by this job"
    with open(checkout / "gear_dist" / "training" / "sample_grids.py", "a") as file:
        file.write(f"\nprint({marker!r})\n")
    words = [*head.case.settings(tmp_path), "stages.tokenizer.steps=2", "stages.joint.steps=4"]
    code, out, job = submit(head, checkout, "gear-dist", "train", "configs/tiny.yaml", *words)
    assert code == 0, out
    assert job["driver_exit_code"] == 0
    assert "step 6/6" in out
    assert "done: 6 steps" in out
    folder = RunFolder(tmp_path / "run")
    assert folder.read_environment()["world_size"] == 2
    status = folder.read_status()
    assert status is not None
    assert status.state == "done"
    # The uploaded packages ran, not those that the environment has installed.
    logs = sorted(folder.path.glob("logs/worker-*.log"))
    assert [marker in log.read_text() for log in logs] == [True, True]


def test_runs_as_a_module(head: Head, checkout: Path, tmp_path: Path) -> None:
    """As on a cluster where the package is not installed and `gear-dist` is not on PATH."""
    shutil.copy(head.case.config, checkout / "configs" / "tiny.yaml")
    words = ["train", "configs/tiny.yaml", *head.case.settings(tmp_path), "--dry-run"]
    code, out, job = submit(head, checkout, "python", "-m", "gear_dist", *words)
    assert code == 0, out
    assert job["driver_exit_code"] == 0
    assert "ray: 2 workers on cpu, micro-batch 4" in out


def test_failure_keeps_its_exit_code(head: Head, checkout: Path, tmp_path: Path) -> None:
    words = [*head.case.settings(tmp_path), "generator.num_clases=3"]
    shutil.copy(head.case.config, checkout / "configs" / "tiny.yaml")
    code, out, job = submit(head, checkout, "gear-dist", "train", "configs/tiny.yaml", *words)
    assert code != 0
    assert job["driver_exit_code"] == 2
    assert "did you mean generator.num_classes?" in out
