"""Sharding killed with -9 at random moments, parent or worker, then run again: the same bytes.

The corpus has shards of several parts, so that uploads are hit between parts as well. A few
moments run in CI; `make soak` runs fifty.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from gear_cluster.demo.object_store import StoreEndpoint
from gear_data_prep.__main__ import main as data_prep
from gear_dist.storage.open import open_storage
from gear_dist.storage.s3 import S3Storage

OPTIONS = ("--shard-bytes", "24M", "--validation-share", "0", "--policy", "palette=keep")
PLACES = [("file", 1), ("file", 2), ("s3", 1), ("s3", 2)]


class Straight(NamedTuple):
    """An undisturbed run."""

    objects: dict[str, bytes]
    seconds: float


@pytest.fixture(scope="module")
def heavy_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 pictures of 0.75 MB: 3 shards of 24 MB."""
    tree = tmp_path_factory.mktemp("heavy_tree")
    rng = np.random.default_rng(0)
    for number in range(96):
        path = tree / f"c{number % 4}/{number}.bmp"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (500, 500, 3), np.uint8)).save(path)
        path.with_suffix(".txt").write_text(f"number {number}")
    return tree


def contents(address: str) -> dict[str, bytes]:
    storage = open_storage(address)
    return {item.key: storage.read(item.key) for item in storage.list()}


@pytest.fixture(scope="module")
def straight(heavy_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    folder = str(tmp_path_factory.mktemp("straight"))
    words = command(heavy_tree, folder, 1)
    start = time.monotonic()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return Straight(contents(folder), time.monotonic() - start)


def command(tree: Path, address: str, workers: int) -> list[str]:
    words = ["shard", str(tree), address, *OPTIONS, "--workers", str(workers)]
    return [sys.executable, "-m", "gear_data_prep", *words]


def children(pid: int) -> list[int]:
    try:
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def kill_at(words: list[str], moment_s: float, one_worker: bool, mark: str) -> int | None:
    """Kill the command, or one of its workers, after so many seconds; its own exit code, if any."""
    environment = {**os.environ, "KILLED_RUN": mark}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(words, env=environment, **quiet) as run:
        try:
            return run.wait(moment_s)
        except subprocess.TimeoutExpired:
            workers = children(run.pid) if one_worker else []
            # The last child is a worker: the first is multiprocessing's resource tracker.
            os.kill(workers[-1] if len(workers) > 1 else run.pid, signal.SIGKILL)
        code = run.wait(60)
    return None if code == -signal.SIGKILL else code


def wait_for_orphans(mark: str) -> None:
    """Workers of a killed parent end by themselves; this waits until they have."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        shown = subprocess.run(["ps", "axwwe"], capture_output=True, text=True, check=True).stdout
        if f"KILLED_RUN={mark}" not in shown:
            return
        time.sleep(0.05)
    raise AssertionError("workers outlive their killed parent")


def finished(folder: Path) -> dict[Path, int]:
    """Shards whose record is there, with the time of their last change."""
    records = {path.stem for path in folder.glob("train/manifest/parts/*.json")}
    tars = folder.glob("train/shards/*.tar")
    return {path: path.stat().st_mtime_ns for path in tars if path.stem in records}


def check_one_kill(
    tree: Path, straight: Straight, place: Path, address: str, workers: int, seed: int
) -> None:
    """Kill at a moment that the seed chooses, run again, compare."""
    rng = random.Random(seed)
    # From before the first import to the last write.
    moment = rng.uniform(0.1, 1.1) * straight.seconds
    mark = f"{place}-{seed}"
    code = kill_at(command(tree, address, workers), moment, rng.random() < 0.4, mark)
    assert code in (None, 0), f"seed {seed}"
    wait_for_orphans(mark)
    survivors = finished(place)
    words = ["shard", str(tree), address, *OPTIONS, "--workers", str(workers)]
    assert data_prep(words) == 0, f"seed {seed}"
    assert contents(address) == straight.objects, f"seed {seed}, {moment:.2f} s"
    again = [path for path, stamp in survivors.items() if path.stat().st_mtime_ns != stamp]
    assert not again, "a shard with its record is not made twice"


@pytest.fixture
def places(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, object_store: StoreEndpoint
) -> dict[str, tuple[Path, str]]:
    """The folder that holds the objects, and their address, by kind of storage."""
    name = f"killed-{random.randrange(1 << 32)}"
    stored = tmp_path_factory.getbasetemp() / f"object_store0/buckets/gear-tests/{name}"
    return {
        "file": (tmp_path / "out", str(tmp_path / "out")),
        "s3": (stored, f"s3://gear-tests/{name}"),
    }


def run_moments(
    tree: Path, straight: Straight, places: dict, kind: str, workers: int, seeds: range
) -> None:
    place, address = places[kind]
    for seed in seeds:
        check_one_kill(tree, straight, place, address, workers, seed)
        storage = open_storage(f"{address}/train")
        if isinstance(storage, S3Storage):
            found = storage.client.list_multipart_uploads(Bucket=storage.bucket)
            assert not found.get("Uploads"), "no dangling upload"
        else:
            files = {p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()}
            assert files == straight.objects.keys(), "no temporary file stays"
        for item in list(open_storage(address).list()):
            open_storage(address).delete(item.key)


@pytest.mark.parametrize(("kind", "workers"), PLACES)
def test_killed_anywhere(
    heavy_tree: Path, straight: Straight, places: dict, kind: str, workers: int
) -> None:
    run_moments(heavy_tree, straight, places, kind, workers, range(2))


@pytest.mark.slow  # fifty runs, each twice: four minutes
@pytest.mark.parametrize(
    ("kind", "workers", "seeds"),
    [
        ("file", 1, range(100, 112)),
        ("file", 2, range(200, 213)),
        ("s3", 1, range(300, 312)),
        ("s3", 2, range(400, 413)),
    ],
)
def test_killed_at_fifty_moments(
    heavy_tree: Path, straight: Straight, places: dict, kind: str, workers: int, seeds: range
) -> None:
    run_moments(heavy_tree, straight, places, kind, workers, seeds)
