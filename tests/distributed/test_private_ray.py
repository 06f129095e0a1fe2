"""A private Ray cluster: who can reach it over the network and through its files."""

import contextlib
import os
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray_training_case import GEAR_DIST, Case, list_workers, make_case

from gear_dist.distributed.private_ray import private_ray

LOOPBACK = ("127.", "::1", "::ffff:127.")


def listening(root: int) -> dict[str, str]:
    """Addresses on which a process and its descendants listen, beside the processes' names."""
    found = {}
    process = psutil.Process(root)
    for one in (process, *process.children(recursive=True)):
        try:
            for connection in one.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found[f"{connection.laddr.ip}:{connection.laddr.port}"] = one.name()
        except psutil.NoSuchProcess:
            continue
    return found


def beyond_loopback(addresses: dict[str, str]) -> dict[str, str]:
    return {a: name for a, name in addresses.items() if not a.startswith(LOOPBACK)}


@pytest.fixture
def short_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of this test alone: other runs of the machine come and go in the common one."""
    with tempfile.TemporaryDirectory(prefix="g-", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def test_a_cluster_is_closed_to_others(short_temporary_folder: Path) -> None:
    import ray
    from ray._private import ray_constants

    class Worker:
        def node_address(self) -> str:
            return ray.util.get_node_ip_address()

    before = ray_constants.ENABLE_RAY_CLUSTER
    others = listening(os.getpid())  # worker processes that tests keep for the next one
    with private_ray(2):
        actor = ray.remote(Worker).remote()
        assert ray.get(actor.node_address.remote()) == "127.0.0.1"
        found = {a: name for a, name in listening(os.getpid()).items() if a not in others}
        assert {"gcs_server", "raylet"} <= set(found.values())
        assert not beyond_loopback(found)
        (folder,) = short_temporary_folder.iterdir()
        assert folder.name.startswith("gear-ray-")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
        assert folder in session.parents
    assert not list(short_temporary_folder.iterdir())
    assert before == ray_constants.ENABLE_RAY_CLUSTER


def test_a_long_temporary_folder_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's sockets would not fit into it; /tmp is as private, because the folder is."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("n" * 60)))
    with private_ray(1):
        import ray

        folder = Path(ray._private.worker.global_worker.node.get_session_dir_path()).parents[1]
        assert folder.parent == Path("/tmp")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("private_ray"))


def start(case: Case, root: Path, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*GEAR_DIST, "train", str(case.config), *case.settings(root), *words],
        env=case.environment | {"TMPDIR": tempfile.gettempdir()},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )


def test_training_opens_no_port_but_that_of_torch(
    case: Case, short_temporary_folder: Path, tmp_path: Path
) -> None:
    """And a killed driver's folders go at the next start."""
    driver = start(case, tmp_path, "stages.joint.steps=100000")
    try:
        while not (tmp_path / "run/checkpoints").is_dir() or not list_workers(driver.pid):
            assert driver.poll() is None
            time.sleep(0.2)
        found = listening(driver.pid)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    left = beyond_loopback(found)
    assert {"gcs_server", "raylet"} <= set(found.values())
    # torch.distributed's store, where the workers of rank 0 meet.
    assert len(left) <= 1
    assert all("RayTrainWorker" in name for name in left.values())
    kinds = ("gear-ray-*", "gear-train-*")
    killed = [path for kind in kinds for path in short_temporary_folder.glob(kind)]
    assert len(killed) == 2
    short = ("stages.tokenizer.steps=1", "stages.joint.steps=1")
    assert start(case, tmp_path / "other", *short).wait() == 0
    assert not any(short_temporary_folder.glob("gear-*"))


def test_sharding_on_ray_is_as_private(
    case: Case, short_temporary_folder: Path, tmp_path: Path
) -> None:
    images = case.corpus.parent / "images"
    words = [*GEAR_DIST, "shard", str(images), str(tmp_path / "out"), "--ray", "--workers", "2"]
    words += ["--shard-samples", "1"]
    environment = case.environment | {"TMPDIR": str(short_temporary_folder)}
    driver = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
    found: dict[str, str] = {}
    folders: set[str] = set()
    while driver.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= listening(driver.pid)
        folders |= {path.name for path in short_temporary_folder.iterdir()}
        time.sleep(0.1)
    assert driver.returncode == 0
    assert {"gcs_server", "raylet"} <= set(found.values())
    assert not beyond_loopback(found)
    assert "ray" not in folders
    assert any(name.startswith("gear-ray-") for name in folders)
