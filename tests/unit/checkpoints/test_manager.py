"""The checkpoint store with plain tensors: cuts, damage, refusals, retention, both storages."""

import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from checkpoint_states import RUN, make_store, read, shards
from gear_dist.checkpoints import collective_progress
from gear_dist.checkpoints.layout import MANIFEST, OWNER, POINTER
from gear_dist.checkpoints.manager import CheckpointManager, UnusableCheckpointsError
from gear_dist.checkpoints.owner import Owner, Ownership
from gear_dist.checkpoints.reader import CheckpointReader
from gear_dist.checkpoints.retention import Retention
from gear_dist.checkpoints.shards import TensorShard, replicated
from gear_dist.config.run import CheckpointConfig
from gear_dist.errors import DataError, StorageError
from gear_dist.storage.base import Storage
from gear_dist.storage.local import FileStorage
from gear_dist.storage.open import open_storage
from refusals import refused

OWN = {POINTER, OWNER}


@pytest.fixture(params=["file", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "file":
        return open_storage(str(tmp_path / "checkpoints"))
    request.getfixturevalue("object_store")
    return open_storage(f"s3://gear-tests-checkpoints/{request.node.name}")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_any_stretch_comes_back(storage: Storage, asynchronous: bool) -> None:
    store = make_store(storage, asynchronous)
    store.save(3, {"loader": {"step": 3}}, shards())
    store.wait()
    [result] = store.take_results()
    assert (result.step, result.problem) == (3, "")
    with CheckpointReader(storage, result.folder) as reader:
        reader.verify([0])
        assert reader.state == {"loader": {"step": 3}}
        assert read(reader, 0, 10).tolist() == list(range(10))
        assert read(reader, 3, 4).tolist() == [3, 4, 5, 6]
        assert reader.read("net.buffers.n", (), torch.int64) == 7
        assert reader.read("net.buffers.bytes", (3,), torch.uint8).tolist() == [0, 1, 2]
        assert reader.keys() == {shard.key for shard in shards()}
        with refused(DataError, result.folder, "1 tensors", "net.weights.b"):
            reader.fill([TensorShard("net.weights.b", 0, torch.zeros(2))])
        with refused(DataError, result.folder, "1 tensors", "net.weights.a"):
            read(reader, 5, 6)


def test_an_asynchronous_save_keeps_what_was_there_when_it_began(tmp_path: Path) -> None:
    """Training continues into the same tensors while the writer is held up."""
    storage = SlowStorage(tmp_path)
    store = make_store(storage, asynchronous=True)
    values = torch.arange(4.0)
    store.save(1, {}, [replicated("a", values)])
    values.zero_()
    assert store.take_results() == []
    assert not (tmp_path / POINTER).exists()
    storage.go.set()
    store.wait()
    [result] = store.take_results()
    assert result.blocked_s < result.took_s
    with CheckpointReader(storage, result.folder) as reader:
        assert reader.read("a", (4,)).tolist() == [0, 1, 2, 3]


def test_a_damaged_or_lost_part_is_passed_over(storage: Storage) -> None:
    store = make_store(storage, keep_last=3)
    for step in (1, 2, 3):
        store.save(step, {}, shards())
    folders = [item.folder for item in store.published()]
    assert [item.manifest.step for item in store.published()] == [1, 2, 3]
    part = f"{folders[2]}/part-00000.safetensors"
    data = bytearray(storage.read(part))
    data[-1] ^= 1
    storage.write(part, bytes(data))
    reader = store.open_newest()
    assert folders[2] in store.skipped_checkpoints[0]
    assert reader is not None
    assert reader.manifest.step == 2
    storage.delete(f"{folders[1]}/part-00000.safetensors")
    reader = store.open_newest()
    assert len(store.skipped_checkpoints) == 2
    assert reader is not None
    assert reader.manifest.step == 1
    storage.write(f"{folders[0]}/manifest.json", b"{")
    with refused(UnusableCheckpointsError, storage.address, "3 checkpoints", "run.resume=none"):
        store.open_newest()
    assert len({item.key.split("/")[0] for item in storage.list()} - OWN) == 3


def test_a_refused_write_leaves_the_one_before(tmp_path: Path) -> None:
    storage = RefusingStorage(tmp_path)
    store = make_store(storage, asynchronous=True)
    store.save(1, {}, shards())
    store.wait()
    for name in ("part-", "manifest", POINTER):
        storage.refused = name
        store.save(2, {}, shards())
        store.wait()
    results = store.take_results()
    assert [bool(result.problem) for result in results] == [False, True, True, True]
    assert "the disk is full" in results[1].problem
    storage.refused = ""
    reader = store.open_newest()
    assert reader is not None
    # The last one is whole, and only the pointer for people was refused.
    assert reader.manifest.step == 2
    store.save(3, {}, shards())
    store.wait()
    steps = [item.manifest.step for item in store.published()]
    assert steps == [2, 3]
    kept = {item.folder for item in store.published()} | OWN
    assert {path.name for path in tmp_path.iterdir()} - kept == set()


def test_what_is_kept(storage: Storage) -> None:
    """The last two, every fourth step, and the lowest loss; nothing of the others stays."""
    store = make_store(storage, keep_last=2, keep_every_steps=4, best_metric="l1")
    losses = {1: 5.0, 2: 3.0, 3: 0.5, 4: 9.0, 5: 2.0, 6: 0.7, 7: 0.9}
    for step, loss in losses.items():
        store.save(step, {"metrics": {"l1": loss, "other": -loss}}, shards())
    assert [item.manifest.step for item in store.published()] == [3, 4, 6, 7]
    folders = {item.key.split("/")[0] for item in storage.list()}
    assert folders == {item.folder for item in store.published()} | OWN


class RecordingStorage(FileStorage):
    """Keeps what is deleted, in order."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.deleted: list[str] = []

    def delete(self, key: str) -> None:
        self.deleted.append(key)
        super().delete(key)

    def delete_folder(self, folder: str) -> None:
        self.deleted.append(folder)
        super().delete_folder(folder)


def test_a_checkpoint_that_goes_loses_its_manifest_first(tmp_path: Path) -> None:
    """So that a process that is killed meanwhile leaves no folder that looks whole."""
    storage = RecordingStorage(tmp_path)
    store = make_store(storage, keep_last=1)
    store.save(1, {}, shards())
    [former] = store.published()
    store.save(2, {}, shards())
    assert storage.deleted == [f"{former.folder}/{MANIFEST}", former.folder]


def test_the_newest_is_the_last_one_written(tmp_path: Path) -> None:
    """Also where a run was set back to an earlier step, and by another process."""
    storage = open_storage(str(tmp_path))
    for step in (8, 3):
        make_store(storage).save(step, {}, shards())
    reader = make_store(storage).open_newest()
    assert reader is not None
    assert reader.manifest.step == 3


class SlowStorage(FileStorage):
    """Writes once it is told to go."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.go = threading.Event()

    def writer(self, key: str) -> AbstractContextManager[BinaryIO]:
        assert self.go.wait(20)
        return super().writer(key)


class RefusingStorage(FileStorage):
    """Refuses names that contain `refused`."""

    refused = ""

    def writer(self, key: str) -> AbstractContextManager[BinaryIO]:
        self._check(key)
        return super().writer(key)

    def write(self, key: str, data: bytes) -> None:
        self._check(key)
        super().write(key, data)

    def _check(self, key: str) -> None:
        if self.refused and self.refused in key:
            raise StorageError(f"{key}: the disk is full; free some space and run again")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_save_that_moves_on_is_told_as_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    """Beats come while the storage is active, and none once it has been still for long."""
    monkeypatch.setattr(collective_progress, "STALL_S", 0.5)
    monkeypatch.setattr(collective_progress, "ROUND_S", 0.05)
    storage = SlowStorage(tmp_path)
    beats: list[bool] = []
    still = threading.Event()

    def beat() -> None:
        beats.append(still.is_set())
        storage.activity += not still.is_set()
        if len(beats) == 20:
            still.set()  # from here on nothing moves
            threading.Timer(3.0, storage.go.set).start()

    held = Ownership.acquire(storage, Owner.here(RUN))
    retention = Retention(CheckpointConfig())
    store = CheckpointManager(storage, retention, held, asynchronous=asynchronous, beat=beat)
    store.save(1, {}, shards())
    store.wait()
    [result] = store.take_results()
    assert result.problem == ""
    assert beats.count(False) >= 20
    assert beats.count(True) < 10, "0.5 s of beats at five a second, and one at the end"
