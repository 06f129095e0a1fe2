"""Bulk sampling by real processes: the same bytes by any number of workers and through any kill."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fault_proxy import FULL, Rule, fault_proxy
from gear_cluster.demo.object_store import StoreEndpoint
from gear_dist.storage.open import open_storage
from image_files import contents
from tiny_pair import make_tiny_pair

NUM, PER_TAR = 1600, 40
SETTINGS = (
    "--num",
    str(NUM),
    "--samples-per-tar",
    str(PER_TAR),
    "--seed",
    "11",
    "--guidance",
    "1.5",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bulk") / "model"
    make_tiny_pair(folder)
    return folder


def command(model: Path, out: Path | str, *options: str) -> list[str]:
    words = ["sample", str(model), "--out", str(out), *SETTINGS, *options]
    return [sys.executable, "-m", "gear_dist", *words]


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return kept | {"OMP_NUM_THREADS": "1"} | more


@pytest.fixture(scope="module")
def straight(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file of an undisturbed run of one worker."""
    out = tmp_path_factory.mktemp("straight") / "out"
    done = subprocess.run(
        command(model, out), env=environment(), capture_output=True, text=True, check=True
    )
    assert f"{NUM:,} of {NUM:,} samples made" in done.stderr
    found = contents(out)
    assert len(found) == 2 + 2 * NUM // PER_TAR
    return found


def test_ray_tasks_give_the_same_bytes(
    model: Path, straight: dict[str, bytes], tmp_path: Path
) -> None:
    words = command(model, tmp_path / "out", "--workers", "2", "--ray")
    subprocess.run(words, env=environment(), check=True, capture_output=True, timeout=240)
    assert contents(tmp_path / "out") == straight


def run_with_kills(model: Path, out: Path, kills: int, chance: random.Random) -> int:
    """Repeat the command until it ends well; the kills that hit a process of it.

    Each is SIGKILL to the command with all its processes, or to a worker of it alone.
    """
    hit = 0
    while True:
        process = subprocess.Popen(
            command(model, out, "--workers", "2"),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if hit < kills:
            # Once there is something to lose; then at any moment.
            begun = len(list(out.glob("samples/*.tar"))) if out.exists() else 0
            while process.poll() is None and len(list(out.glob("samples/*.tar"))) == begun:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.3))
            children = psutil.Process(process.pid).children() if process.poll() is None else []
            if children and chance.random() < 0.5:
                victim = chance.choice(children)
                if victim.is_running():
                    victim.kill()
                    hit += 1
            elif process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                hit += 1
        if process.wait(timeout=240) == 0:
            return hit


def test_no_kill_loses_doubles_or_changes_a_sample(
    model: Path, straight: dict[str, bytes], tmp_path: Path
) -> None:
    assert run_with_kills(model, tmp_path / "out", 2, random.Random(0)) == 2
    assert contents(tmp_path / "out") == straight


@pytest.mark.slow
def test_twenty_kills(model: Path, straight: dict[str, bytes], tmp_path: Path) -> None:
    chance, hit, rounds = random.Random(int(os.environ.get("GEAR_SOAK_SEED", "1"))), 0, 0
    while hit < 20:
        rounds += 1
        out = tmp_path / f"out-{rounds}"
        hit += run_with_kills(model, out, 4, chance)
        assert contents(out) == straight
    print(f"{hit} kills in {rounds} runs")


def test_a_store_that_is_full_ends_with_5_and_goes_on(
    model: Path, straight: dict[str, bytes], object_store: StoreEndpoint
) -> None:
    """Tars go to a real S3 server; once it has no room, the next command makes the rest."""
    out = f"s3://gear-tests-bulk/{os.getpid()}"
    variables = environment(**object_store.environment())
    with fault_proxy(object_store.endpoint, 0) as (url, proxy):
        proxy.rules.append(Rule("PUT POST", r"samples/000009\.tar", FULL))
        words = command(model, out, "--endpoint", url)
        failed = subprocess.run(words, env=variables, capture_output=True, text=True)
        assert failed.returncode == 5, failed.stderr
        assert "samples/000009.tar" in failed.stderr
        proxy.rules.clear()
        done = subprocess.run(words, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert f"{NUM - 9 * PER_TAR:,} of {NUM:,} samples made" in done.stderr
    storage = open_storage(out, object_store.endpoint)
    found = {item.key: storage.read(item.key) for item in storage.list()}
    assert found == {str(key): value for key, value in straight.items()}


def test_ctrl_c_ends_at_once_and_keeps_what_is_finished(model: Path, tmp_path: Path) -> None:
    """Of so many samples that it does not end by itself between two looks."""
    many = ("--num", "4000", "--no-npz", "--workers", "2")
    out, whole = tmp_path / "out", tmp_path / "whole"
    process = subprocess.Popen(
        command(model, out, *many),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not list(out.glob("records/*.json")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    kept = {name: data for name, data in contents(out).items() if ".gear-part" not in name}
    assert len(list((out / "records").iterdir())) < 100
    for folder in (out, whole):
        words = command(model, folder, *many)
        subprocess.run(words, env=environment(), check=True, capture_output=True)
    found = contents(whole)
    assert contents(out) == found
    assert all(data == found[name] for name, data in kept.items())
