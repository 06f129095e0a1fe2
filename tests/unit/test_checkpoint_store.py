"""The checkpoint store with plain tensors: cuts, damage, refusals, retention, both storages."""

import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from torch import Tensor

from gear_dist.checkpoints.layout import POINTER
from gear_dist.checkpoints.pieces import Piece, whole
from gear_dist.checkpoints.reading import CheckpointReader
from gear_dist.checkpoints.retention import Retention
from gear_dist.checkpoints.store import CheckpointStore
from gear_dist.config import CheckpointConfig
from gear_dist.errors import DataError, StorageError
from gear_dist.storage import FileStorage, Storage, open_storage


@pytest.fixture(params=["file", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "file":
        return open_storage(str(tmp_path / "checkpoints"))
    request.getfixturevalue("object_store")
    return open_storage(f"s3://gear-tests-checkpoints/{request.node.name}")


def make_store(storage: Storage, asynchronous: bool = False, **config: Any) -> CheckpointStore:
    return CheckpointStore(
        storage, Retention(CheckpointConfig(**config)), asynchronous=asynchronous
    )


def pieces() -> list[Piece]:
    numbers = torch.arange(10.0)
    return [
        Piece("net.weights.a", 4, numbers[4:].clone()),
        Piece("net.weights.a", 0, numbers[:4].clone()),
        whole("net.buffers.n", torch.tensor(7)),
        whole("net.buffers.bytes", torch.arange(3, dtype=torch.uint8)),
        whole("net.buffers.empty", torch.zeros(0)),
    ]


def read(reader: CheckpointReader, start: int, count: int) -> Tensor:
    values = torch.full((count,), -1.0)
    reader.fill([Piece("net.weights.a", start, values)])
    return values


@pytest.mark.parametrize("asynchronous", [False, True])
def test_any_stretch_comes_back(storage: Storage, asynchronous: bool) -> None:
    store = make_store(storage, asynchronous)
    store.save(3, {"loader": {"step": 3}}, pieces())
    store.wait()
    [result] = store.take_results()
    assert (result.step, result.problem) == (3, "")
    with CheckpointReader(storage, result.folder) as reader:
        reader.verify([0])
        assert reader.facts == {"loader": {"step": 3}}
        assert read(reader, 0, 10).tolist() == list(range(10))
        assert read(reader, 3, 4).tolist() == [3, 4, 5, 6]
        assert reader.read("net.buffers.n", (), torch.int64) == 7
        assert reader.read("net.buffers.bytes", (3,), torch.uint8).tolist() == [0, 1, 2]
        assert reader.keys() == {piece.key for piece in pieces()}
        with pytest.raises(DataError, match=r"lacks 1 tensors, such as net\.weights\.b"):
            reader.fill([Piece("net.weights.b", 0, torch.zeros(2))])
        with pytest.raises(DataError, match="lacks 1 tensors"):
            read(reader, 5, 6)


def test_an_asynchronous_save_keeps_what_was_there_when_it_began(tmp_path: Path) -> None:
    """Training goes on into the same tensors while the writer is held up."""
    storage = SlowStorage(tmp_path)
    store = make_store(storage, asynchronous=True)
    values = torch.arange(4.0)
    store.save(1, {}, [whole("a", values)])
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
        store.save(step, {}, pieces())
    folders = [item.folder for item in store.published()]
    assert [item.manifest.step for item in store.published()] == [1, 2, 3]
    part = f"{folders[2]}/part-00000.safetensors"
    data = bytearray(storage.read(part))
    data[-1] ^= 1
    storage.write(part, bytes(data))
    with pytest.warns(UserWarning, match=f"{folders[2]} passed over: .*do not match"):
        reader = store.open_newest()
    assert reader is not None
    assert reader.manifest.step == 2
    storage.delete(f"{folders[1]}/part-00000.safetensors")
    with pytest.warns(UserWarning, match="passed over"):
        reader = store.open_newest()
    assert reader is not None
    assert reader.manifest.step == 1
    storage.write(f"{folders[0]}/manifest.json", b'{"format": 1}')
    with pytest.warns(UserWarning, match="not a checkpoint manifest of this version"):
        assert [item.manifest.step for item in store.published()] == [2, 3]


def test_a_refused_write_leaves_the_one_before(tmp_path: Path) -> None:
    storage = RefusingStorage(tmp_path)
    store = make_store(storage, asynchronous=True)
    store.save(1, {}, pieces())
    store.wait()
    for refused in ("part-", "manifest", POINTER):
        storage.refused = refused
        store.save(2, {}, pieces())
        store.wait()
    results = store.take_results()
    assert [bool(result.problem) for result in results] == [False, True, True, True]
    assert "the disk is full" in results[1].problem
    storage.refused = ""
    reader = store.open_newest()
    assert reader is not None
    # The last one is whole, and only the pointer for people was refused.
    assert reader.manifest.step == 2
    store.save(3, {}, pieces())
    store.wait()
    steps = [item.manifest.step for item in store.published()]
    assert steps == [2, 3]
    kept = {item.folder for item in store.published()} | {POINTER}
    assert {path.name for path in tmp_path.iterdir()} - kept == set()


def test_what_is_kept(storage: Storage) -> None:
    """The last two, every fourth step, and the lowest loss; nothing of the others stays."""
    store = make_store(storage, keep_last=2, keep_every_steps=4, best_metric="l1")
    losses = {1: 5.0, 2: 3.0, 3: 0.5, 4: 9.0, 5: 2.0, 6: 0.7, 7: 0.9}
    for step, loss in losses.items():
        store.save(step, {"metrics": {"l1": loss, "other": -loss}}, pieces())
    assert [item.manifest.step for item in store.published()] == [3, 4, 6, 7]
    folders = {item.key.split("/")[0] for item in storage.list()}
    assert folders == {item.folder for item in store.published()} | {POINTER}


def test_the_newest_is_the_last_one_written(tmp_path: Path) -> None:
    """Also where a run was set back to an earlier step, and by another process."""
    storage = open_storage(str(tmp_path))
    for step in (8, 3):
        make_store(storage).save(step, {}, pieces())
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
