"""file:// storage: atomic writes, errors by name, nothing left behind."""

import errno
import fcntl
import os
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gear_dist.errors import ConfigError, DataError, StorageError
from gear_dist.storage.atomic import atomic_file, write_file
from gear_dist.storage.base import MissingObjectError, ObjectInfo
from gear_dist.storage.checksums import crc64nvme_hex
from gear_dist.storage.local import FileStorage
from gear_dist.storage.open import open_storage
from refusals import refused


@pytest.fixture
def storage(tmp_path: Path) -> FileStorage:
    return FileStorage(tmp_path / "root")


def files_below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_round_trip(storage: FileStorage, tmp_path: Path) -> None:
    storage.write("a/b.bin", b"0123456789")
    with storage.writer("a/c.bin") as stream:
        stream.write(b"xy")
    storage.upload("d.bin", storage.root / "a/b.bin")
    storage.download("a/c.bin", tmp_path / "elsewhere/c.bin")
    assert storage.read("a/b.bin") == storage.read("d.bin") == b"0123456789"
    assert storage.read_range("a/b.bin", 3, 4) == b"3456"
    assert storage.read_range("a/b.bin", 10, 0) == b""
    assert (tmp_path / "elsewhere/c.bin").read_bytes() == b"xy"
    assert list(storage.list()) == [
        ObjectInfo("a/b.bin", 10),
        ObjectInfo("a/c.bin", 2),
        ObjectInfo("d.bin", 10),
    ]
    assert [item.key for item in storage.list("a/b")] == ["a/b.bin"]
    storage.delete("a/b.bin")
    storage.delete("a/b.bin")
    assert not storage.exists("a/b.bin")
    assert storage.size("a/c.bin") == 2
    assert list(FileStorage(tmp_path / "none").list()) == []


def test_addresses(tmp_path: Path) -> None:
    plain, url = open_storage(str(tmp_path / "a b")), open_storage((tmp_path / "a b").as_uri())
    plain.write("k", b"1")
    assert url.read("k") == b"1"
    assert plain.address == url.address == (tmp_path / "a b").as_uri()
    assert pickle.loads(pickle.dumps(plain)).read("k") == b"1"
    for address, word in (
        ("gs://bucket/x", "gs://"),
        ("file://folder", "file:///ABSOLUTE/FOLDER"),
        ("s3:///x", "s3://BUCKET/PREFIX"),
        ("", "empty"),
    ):
        with refused(ConfigError, repr(address), word):
            open_storage(address)


@pytest.mark.parametrize("key", ["", "/etc/x", "../x", "a/../../x", "a//b", "."])
def test_keys_stay_below_the_root(storage: FileStorage, key: str) -> None:
    with refused(ValueError, repr(key)):
        storage.write(key, b"")


def test_missing_and_short(storage: FileStorage) -> None:
    storage.write("file", b"abc")
    for read in (storage.read, storage.size):
        with refused(MissingObjectError, storage.root / "none"):
            read("none")
        with refused(MissingObjectError, storage.root / "file/below"):
            read("file/below")
    with refused(DataError, storage.root / "file", "bytes 1 to 4"):
        storage.read_range("file", 1, 3)


def write_half(storage: FileStorage) -> None:
    with storage.writer("k") as stream:
        stream.write(b"new but unfinished")
        raise KeyboardInterrupt


def test_failed_write_keeps_the_old_object(storage: FileStorage) -> None:
    storage.write("k", b"old")
    with pytest.raises(KeyboardInterrupt):
        write_half(storage)
    assert storage.read("k") == b"old"
    assert files_below(storage.root) == ["k"]


def test_full_disk(storage: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write("k", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with refused(StorageError, storage.root / "k", "disk"):
        storage.write("k", b"new")
    monkeypatch.undo()
    assert storage.read("k") == b"old"
    assert files_below(storage.root) == ["k"]


def test_refused_write(storage: FileStorage) -> None:
    storage.write("file", b"")
    with refused(StorageError, storage.root / "file/below", "written"):
        storage.write("file/below", b"")


def test_listing_hides_unfinished_writes(storage: FileStorage) -> None:
    with storage.writer("k") as stream:
        stream.write(b"half")
        stream.flush()
        assert list(storage.list()) == []
        assert len(files_below(storage.root)) == 1
        assert storage.remove_leftovers() == 0
    assert [item.key for item in storage.list()] == ["k"]


def test_killed_writers_are_cleaned_up(storage: FileStorage) -> None:
    code = (
        "import os, sys; from gear_dist.storage.open import open_storage\n"
        "with open_storage(sys.argv[1]).writer('shards/k') as stream:\n"
        "    stream.write(b'half'); stream.flush(); os.kill(os.getpid(), 9)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(storage.root)], check=False)
    assert run.returncode == -9
    assert len(files_below(storage.root)) == 1
    assert list(storage.list()) == []
    assert storage.remove_leftovers() == 1
    assert files_below(storage.root) == []


def test_writers_of_other_machines_get_a_day(storage: FileStorage) -> None:
    storage.write("k", b"")
    assert socket.gethostname() != "elsewhere"
    other = storage.root / ".k.elsewhere.abcd.gear-part"
    other.write_bytes(b"")
    assert storage.remove_leftovers() == 0
    os.utime(other, (time.time() - 90_000,) * 2)
    assert storage.remove_leftovers() == 1


def test_atomic_file_mode(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "secret", 0o600) as stream:
        stream.write(b"1")
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_create_takes_a_name_once(storage: FileStorage) -> None:
    assert storage.create("a/k", b"first")
    assert not storage.create("a/k", b"second")
    assert storage.read("a/k") == b"first"
    assert files_below(storage.root) == ["a/k"], "no temporary file stays"


def test_create_without_hard_links(storage: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert storage.create("k", b"x")
    assert storage.read("k") == b"x"


def test_checksum_in_windows(storage: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    from gear_dist.storage import checksums as module

    data = os.urandom(100_000)
    storage.write("k", data)
    whole = module.checksum_of(storage, "k")
    assert whole == crc64nvme_hex(data)
    monkeypatch.setattr(module, "_WINDOW_BYTES", 999)
    assert module.checksum_of(storage, "k") == whole
    monkeypatch.setattr(FileStorage, "known_checksum", lambda *_: "of the store")
    assert module.checksum_of(storage, "k") == "of the store"
    assert module.checksum_of(storage, "k", trust_store=False) == whole


def test_a_file_that_is_tidied_away_before_its_lock_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between making and locking it a temporary file looks abandoned to another process."""
    real, removed = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        removed.append(FileStorage(tmp_path).remove_leftovers())
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    FileStorage(tmp_path).write("a/b", b"whole")
    assert removed == [1]
    assert (tmp_path / "a/b").read_bytes() == b"whole"
    assert not list(tmp_path.rglob("*.gear-part"))


def test_a_folder_goes_whole(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    for key in ("a/1", "a/b/2", "ab/3"):
        storage.write(key, b"x")
    storage.delete_folder("a")
    storage.delete_folder("absent")
    assert [item.key for item in storage.list()] == ["ab/3"]
    assert not (tmp_path / "a").exists()


def test_a_pipe_or_device_is_never_replaced(tmp_path: Path) -> None:
    """As root, a rename onto /dev/null would take it from the whole machine."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with refused(StorageError, pipe, "pipe, not a file"):
        write_file(pipe, b"x")
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
