"""Sharding as Ray tasks: the bytes of a run on one machine, also where workers die."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from image_files import contents, encode

ROOT = Path(__file__).parents[2]
CODE = "import sys; from gear_data_prep.__main__ import main; sys.exit(main(sys.argv[1:]))"


def make_tree(root: Path) -> Path:
    for number in range(300):
        path = root / f"c{number % 5}/{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(number))
    return root


def command(tree: Path, out: Path, *options: str) -> list[str]:
    words = ["shard", str(tree), str(out), "--shard-samples", "10", "--validation-share", "0"]
    return [sys.executable, "-c", CODE, *words, "--workers", "2", *options]


def _kill_some_workers(stop: threading.Event, root: int, killed: list[int]) -> None:
    """Kill Ray's worker processes of this run's cluster, two of them."""
    while not stop.is_set() and len(killed) < 2:
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                name = (folder / "cmdline").read_bytes().decode(errors="replace")
                marked = f"SHARD_RAY={root}".encode() in (folder / "environ").read_bytes()
            except OSError:
                continue
            if marked and name.startswith("ray::shard_task") and len(killed) < 2:
                os.kill(int(folder.name), signal.SIGKILL)
                killed.append(int(folder.name))
                time.sleep(1)
        time.sleep(0.02)


def test_ray_tasks_give_the_same_bytes_and_survive_their_workers(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    plain, on_ray = tmp_path / "plain", tmp_path / "ray"
    subprocess.run(command(tree, plain), check=True)
    mark = os.getpid()
    environment = {**os.environ, "SHARD_RAY": str(mark)}
    environment.pop("RAY_ADDRESS", None)
    stop, killed = threading.Event(), []
    killer = threading.Thread(target=_kill_some_workers, args=(stop, mark, killed))
    killer.start()
    try:
        subprocess.run(command(tree, on_ray, "--ray"), check=True, env=environment, timeout=240)
    finally:
        stop.set()
        killer.join()
    assert contents(on_ray) == contents(plain)
    assert killed, "no worker was hit"


def test_errors_of_tasks_are_the_users(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    (tmp_path / "file").write_text("")
    run = subprocess.run(
        command(tree, tmp_path / "file", "--ray"), capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 5
    assert len(run.stderr.strip().splitlines()) == 1


def test_workers_find_the_packages_of_a_bare_checkout(tmp_path: Path) -> None:
    """As under `ray job submit --working-dir .`: the checkout's root is all that is on the path."""
    tree = make_tree(tmp_path / "tree")
    words = command(tree, tmp_path / "out", "--ray")
    words[1:3] = ["-m", "gear_dist"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    subprocess.run(words, check=True, env=environment, timeout=240)
    assert (tmp_path / "out/train/manifest/dataset.json").exists()
