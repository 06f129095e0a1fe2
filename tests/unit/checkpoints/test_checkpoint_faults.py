"""What could not be read is not taken for absent; nothing good goes while the store misbehaves."""

import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from checkpoint_states import RUN, make_store, save, shards
from fault_proxy import REFUSED, SILENT, TORN, FaultProxy, Rule, fault_proxy
from gear_cluster.demo.object_store import StoreEndpoint
from gear_dist.checkpoints.layout import CheckpointManifest, DamagedCheckpointError, PartRecord
from gear_dist.checkpoints.listing import look, read_manifest
from gear_dist.checkpoints.manager import UnusableCheckpointsError
from gear_dist.checkpoints.saving import Saver
from gear_dist.errors import DataError, StorageError
from gear_dist.storage import s3, s3_client
from gear_dist.storage.base import Storage
from gear_dist.storage.local import FileStorage
from gear_dist.storage.open import open_storage
from gear_dist.storage.s3 import S3Storage
from refusals import refused


@pytest.fixture
def proxied(
    object_store: StoreEndpoint, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Storage, FaultProxy]]:
    """An address behind the proxy, whose client has less patience."""
    monkeypatch.setattr(s3_client, "_MAX_WAIT_S", 0.001)

    def impatient(*args: Any, **options: Any) -> Any:
        return s3_client.make_client(*args, read_timeout_s=0.3, **options)

    monkeypatch.setattr(s3, "make_client", impatient)
    with fault_proxy(object_store.endpoint, 0) as (url, proxy):
        # A test's name would match the rules' paths.
        yield S3Storage(f"s3://gear-tests-faults/{secrets.token_hex(6)}", url), proxy


def names(storage: Storage) -> set[str]:
    return {item.key for item in storage.list()}


@pytest.mark.parametrize("fault", [REFUSED, "503", SILENT, "reset"])
@pytest.mark.parametrize("path", ["manifest.json", "part-", "list-type=2"])
def test_a_checkpoint_that_could_not_be_read_is_not_passed_over(
    proxied: tuple[Storage, FaultProxy], fault: str, path: str
) -> None:
    storage, proxy = proxied
    store = make_store(storage)
    for step in (1, 2):
        save(store, step)
    before = names(storage)
    proxy.rules = [Rule("GET HEAD", path, fault)]
    with pytest.raises((DataError, StorageError)) as caught:
        store.open_newest()
    assert not isinstance(caught.value, UnusableCheckpointsError)
    proxy.rules = []
    assert names(storage) == before
    reader = store.open_newest()
    assert reader is not None
    assert reader.manifest.step == 2


@pytest.mark.parametrize("path", ["manifest.json", "part-"])
def test_a_torn_answer_is_asked_for_again(proxied: tuple[Storage, FaultProxy], path: str) -> None:
    storage, proxy = proxied
    store = make_store(storage)
    save(store, 1)
    proxy.rules = [Rule("GET", path, TORN, times=1)]
    reader = store.open_newest()
    assert reader is not None
    assert store.skipped_checkpoints == []
    assert proxy.done[f"GET {TORN}"] == 1


@pytest.mark.parametrize("fault", [REFUSED, "503", SILENT, TORN])
@pytest.mark.parametrize(
    ("methods", "path"),
    [("GET", "manifest.json"), ("GET", "list-type=2"), ("DELETE", "."), ("GET", "owner.json")],
)
def test_pruning_that_fails_costs_nothing(
    proxied: tuple[Storage, FaultProxy], fault: str, methods: str, path: str
) -> None:
    storage, proxy = proxied
    store = make_store(storage, keep_last=1)
    first = save(store, 1)
    # Requests for the owner come before a publication, too: the fault spares that one.
    proxy.rules = [Rule(methods, path, fault, after=1 if path == "owner.json" else 0)]
    store.save(2, {}, shards())
    [result] = store.take_results()
    proxy.rules = []
    assert result.problem == ""
    assert "old checkpoints stay" in result.notice or (fault, methods) == (TORN, "DELETE")
    newest = look(storage).published[-1]
    assert newest.manifest.step == 2
    if (methods, fault) != ("DELETE", TORN):
        assert f"{first}/manifest.json" in names(storage)
    save(store, 3)
    assert [item.manifest.step for item in look(storage).published] == [3]


@pytest.mark.parametrize("path", ["part-", "manifest.json", "latest.json", "owner.json"])
def test_a_publication_that_fails_leaves_the_one_before(
    proxied: tuple[Storage, FaultProxy], path: str
) -> None:
    storage, proxy = proxied
    store = make_store(storage, keep_last=1)
    first = save(store, 1)
    proxy.rules = [Rule("GET PUT", path, "503")]
    store.save(2, {}, shards())
    [result] = store.take_results()
    assert result.problem
    assert not result.taken
    proxy.rules = []
    assert f"{first}/manifest.json" in names(storage)
    reader = store.open_newest()
    assert reader is not None


def test_a_manifest_of_another_version_ends_the_run_and_stays(tmp_path: Path) -> None:
    """At resume and when old ones are removed."""
    storage = open_storage(str(tmp_path))
    store = make_store(storage, keep_last=1)
    first = save(store, 1)
    later = b'{"format": 4, "what": "of a later version"}'
    storage.write(f"{first}/manifest.json", later)
    with refused(DataError, f"{first}/manifest.json", "format 4", "run.name"):
        store.open_newest()
    store.save(2, {}, shards())
    [result] = store.take_results()
    assert "format 4" in result.notice
    assert storage.read(f"{first}/manifest.json") == later


def test_a_damaged_checkpoint_takes_no_place(tmp_path: Path) -> None:
    """Found at resume, it does not push out a good one later, by this process or another."""
    storage = open_storage(str(tmp_path))
    store = make_store(storage, keep_last=2)
    folders = [save(store, step) for step in (1, 2)]
    spoil(storage, f"{folders[1]}/part-00000.safetensors")
    for _ in range(2):
        reader = store.open_newest()
        assert reader is not None
        assert reader.manifest.step == 1
        store = make_store(storage, keep_last=2)
    save(store, 3)
    assert [item.manifest.step for item in look(storage).published] == [1, 3]
    save(store, 4)
    assert [item.manifest.step for item in look(storage).published] == [3, 4]
    assert f"{folders[1]}/manifest.json" in names(storage), "what is damaged is left to the user"


def test_all_damaged_is_refused_and_nothing_goes(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    store = make_store(storage)
    for step in (1, 2):
        spoil(storage, f"{save(store, step)}/part-00000.safetensors")
    before = names(storage)
    for _ in range(2):
        with refused(UnusableCheckpointsError, storage.address, "2 checkpoints", "run.resume=none"):
            store.open_newest()
    assert names(storage) == before
    store.mark_damaged()
    for step in (1, 2, 3):
        save(store, step)
    assert before <= names(storage)
    reader = store.open_newest()
    assert reader is not None
    assert reader.manifest.step == 3


def spoil(storage: Storage, key: str) -> None:
    data = bytearray(storage.read(key))
    data[-1] ^= 1
    storage.write(key, bytes(data))


MANIFEST = CheckpointManifest(
    7, 3, [PartRecord("part-00000.safetensors", 9, "ab")], {"a": 0.1}, RUN, "f"
)


@pytest.mark.parametrize(
    "edit",
    [
        lambda node: node | {"step": 9},
        lambda node: node | {"run": "99999999"},
        lambda node: node | {"facts": {"a": 0.2}},
        lambda node: {key: value for key, value in node.items() if key != "xxh3"},
        lambda node: {key: value for key, value in node.items() if key != "xxh3"} | {"format": 2},
        lambda node: node | {"more": 1},
        lambda node: [node],
        lambda node: {},
    ],
)
def test_an_edited_manifest_is_found_out(
    edit: Callable[[dict[str, Any]], Any], tmp_path: Path
) -> None:
    storage = FileStorage(tmp_path)
    node = json.loads(MANIFEST.encode())
    storage.write("f/manifest.json", json.dumps(node, indent=3).encode())
    assert read_manifest(storage, "f") == MANIFEST, "how it is set in type does not matter"
    storage.write("f/manifest.json", json.dumps(edit(node)).encode())
    with refused(DamagedCheckpointError, tmp_path / "f/manifest.json"):
        read_manifest(storage, "f")


def test_a_folder_that_cannot_be_listed_is_not_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(make_store(open_storage(str(tmp_path))), 1)
    scandir = __import__("os").scandir

    def refuse(path: Any) -> Any:
        if str(path) == str(tmp_path):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    with refused(DataError, tmp_path, "listed", "Permission denied"):
        look(open_storage(str(tmp_path)))


class RefusingStorage(FileStorage):
    """Refuses parts while it is told to."""

    refusing = True

    def writer(self, key: str) -> Any:
        if self.refusing:
            raise StorageError(f"{key}: the disk is full; free some space and run again")
        return super().writer(key)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_saves_that_fail_in_a_row_end_the_run(tmp_path: Path, asynchronous: bool) -> None:
    storage = RefusingStorage(tmp_path)
    said: list[str] = []
    saver = Saver(make_store(storage, asynchronous), said.append, max_failed=3)
    counts = []
    for step, refusing in enumerate((True, True, False, True, True), 1):
        storage.refusing = refusing
        saver.save(step, {}, shards())
        saver.wait()
        counts.append(saver.take_record()["checkpoint_failed_saves"])
    assert counts == [1, 2, 0, 1, 2]
    with refused(StorageError, "checkpoint.max_failed_saves=3", "step 6", "disk"):
        (saver.save(6, {}, shards()), saver.wait())
    patient = Saver(make_store(storage), said.append, max_failed=0)
    for step in range(1, 6):
        patient.save(step, {}, shards())
    assert patient.take_record()["checkpoint_failed_saves"] == 5
