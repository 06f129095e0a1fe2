"""Sharding that is killed, or that runs out of disk, and then run again."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gear_data_prep.__main__ import main as data_prep
from gear_dist.data.manifest import load_manifest
from gear_dist.errors import DataError
from gear_dist.storage.open import open_storage
from refusals import refused
from sample_shards import SampleShards

OPTIONS = ("--shard-samples", "6")


def contents(address: str) -> dict[str, bytes]:
    storage = open_storage(address)
    return {item.key: storage.read(item.key) for item in storage.list()}


@pytest.fixture(scope="module")
def undisturbed(sample_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = str(tmp_path_factory.mktemp("undisturbed"))
    assert data_prep(["shard", str(sample_tree), folder, *OPTIONS, "--workers", "1"]) == 0
    return contents(folder)


def kill_when(words: list[str], folder: Path, num_shards: int) -> None:
    """Run the command and kill it with -9 once so many shards have appeared in the folder.

    On a busy machine it may finish first: then the folder is emptied for another try.
    """
    command = [sys.executable, "-m", "gear_data_prep", *words]
    environment = {**os.environ, "KILLED_RUN": str(folder)}
    for _ in range(5):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as run:
            while run.poll() is None and len(list(folder.glob("train/shards/*.tar"))) < num_shards:
                time.sleep(0.001)
            run.send_signal(signal.SIGKILL)
        if run.returncode == -signal.SIGKILL and not _is_finished(folder):
            return
        assert run.returncode in (0, -signal.SIGKILL)
        shutil.rmtree(folder)
    raise AssertionError("it always finished before it was killed")


def _is_finished(folder: Path) -> bool:
    return (folder / "train/manifest/dataset.json").exists()


def wait_for_orphans(folder: Path) -> None:
    """Workers of a killed parent end by themselves; this waits until they have."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        shown = subprocess.run(["ps", "axwwe"], capture_output=True, text=True, check=True).stdout
        if f"KILLED_RUN={folder}" not in shown:
            return
        time.sleep(0.05)
    raise AssertionError("workers outlive their killed parent")


@pytest.mark.parametrize(("workers", "num_shards"), [(1, 1), (1, 20), (2, 10)])
def test_killed_and_run_again_on_a_folder(
    sample_tree: Path,
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    workers: int,
    num_shards: int,
) -> None:
    words = ["shard", str(sample_tree), str(tmp_path), *OPTIONS, "--workers", str(workers)]
    kill_when(words, tmp_path, num_shards)
    wait_for_orphans(tmp_path)
    with refused(
        DataError, tmp_path / "train", "manifest/dataset.json", "finished", "gear-dist shard"
    ):
        load_manifest(open_storage(f"{tmp_path}/train"))
    survivors = {p: p.stat().st_mtime_ns for p in tmp_path.glob("train/shards/*.tar")}
    assert data_prep(words) == 0
    assert contents(str(tmp_path)) == undisturbed
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert files == undisturbed.keys(), "no temporary file stays"
    made_again = [p for p, stamp in survivors.items() if p.stat().st_mtime_ns != stamp]
    assert len(made_again) <= workers


def test_killed_and_run_again_on_s3(
    sample_tree: Path,
    undisturbed: dict[str, bytes],
    sample_shards: SampleShards,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    address = "s3://gear-tests/killed"
    words = ["shard", str(sample_tree), address, *OPTIONS, "--workers", "1"]
    # The server keeps a bucket as a folder, which can be watched without slowing it down.
    (stored,) = tmp_path_factory.getbasetemp().glob("object_store0/buckets/gear-tests")
    kill_when(words, stored / "killed", 10)
    with refused(
        DataError, f"{address}/train", "manifest/dataset.json", "finished", "gear-dist shard"
    ):
        load_manifest(open_storage(f"{address}/train"))
    assert data_prep(words) == 0
    assert contents(address) == undisturbed


def test_spoilt_survivors_are_made_again(
    sample_tree: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    words = ["shard", str(sample_tree), str(tmp_path), *OPTIONS, "--workers", "1"]
    kill_when(words, tmp_path, 10)
    tar = tmp_path / "train/shards/000002.tar"
    data = bytearray(tar.read_bytes())
    data[1000] ^= 1
    tar.write_bytes(data)
    (tmp_path / "train/shards/000004.tar").unlink()
    (tmp_path / "train/manifest/parts/000006.json").write_text("{")
    assert data_prep(words) == 0
    assert contents(str(tmp_path)) == undisturbed


def test_full_disk_and_run_again(
    sample_tree: Path,
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["shard", str(sample_tree), str(tmp_path), *OPTIONS, "--workers", "1"]
    real, calls = os.fsync, iter(range(30))

    def fsync(descriptor: int) -> None:
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert data_prep(words) == 5
    shown = capsys.readouterr().err
    assert "the disk is full" in shown
    assert len(shown.splitlines()) == 1
    monkeypatch.undo()
    assert not any(p.name.endswith("part") for p in tmp_path.rglob("*"))
    assert not (tmp_path / "train/manifest/dataset.json").exists()
    assert data_prep(words) == 0
    assert contents(str(tmp_path)) == undisturbed
