"""Indexes of remote tars are read once, and never those of another object."""

import time
from pathlib import Path

import pytest

from gear_cluster.demo.object_store import StoreEndpoint
from gear_data_prep.sources import index_cache, make_spec, open_source
from gear_data_prep.sources.base import Source
from gear_data_prep.sources.files import SourceOptions
from gear_dist.storage import s3
from gear_dist.storage.open import open_storage
from gear_dist.storage.s3 import S3Storage
from image_files import encode, tar_bytes

ROOT = "s3://gear-tests-index"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects count as unchanged for long, which the embedded store needs to be trusted."""
    monkeypatch.setattr(s3, "SETTLED_S", 0)


@pytest.fixture
def reads(object_store: StoreEndpoint, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of ranged reads."""
    found: list[str] = []
    plain = S3Storage.read_range

    def read_range(self: S3Storage, key: str, start: int, length: int) -> bytes:
        found.append(key)
        return plain(self, key, start, length)

    monkeypatch.setattr(S3Storage, "read_range", read_range)
    return found


def images(first: int, count: int) -> dict[str, bytes]:
    return {f"{n:03d}.jpg": encode(n) for n in range(first, first + count)}


def listed(address: str, kind: str, block_samples: int = 4) -> Source:
    options = SourceOptions(validation_share=0.0, block_samples=block_samples)
    return open_source(make_spec(address, kind, options))


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("kind", ["webdataset", "imagenet"])
def test_a_second_listing_reads_nothing(kind: str, reads: list[str]) -> None:
    address = f"{ROOT}/{kind}"
    storage = open_storage(address)

    def put(count: int) -> None:
        inner = tar_bytes(images(0, count))
        storage.write("0.tar", tar_bytes({"n01.tar": inner}) if kind == "imagenet" else inner)

    put(10)
    first = listed(address, kind)
    assert reads
    reads.clear()
    again = listed(address, kind)
    assert (again.splits["train"].digest, again.classes) == (
        first.splits["train"].digest,
        first.classes,
    )
    assert list(again.splits["train"].units) == list(first.splits["train"].units)
    assert not reads
    assert listed(address, kind, block_samples=5).splits["train"].digest != (
        first.splits["train"].digest
    )
    assert reads, "other runs, another index"
    # Within one second the embedded store shows a change by the size alone, and a tar's size
    # is a multiple of 10 KiB: one image more may not be seen.
    before = storage.size("0.tar")
    put(40)
    assert storage.size("0.tar") > before
    assert listed(address, kind).splits["train"].num_samples == 40


@pytest.mark.usefixtures("settled")
def test_damaged_indexes_are_made_again(reads: list[str], tmp_path: Path) -> None:
    storage = open_storage(f"{ROOT}/damaged")
    storage.write("0.tar", tar_bytes(images(0, 6)))
    first = listed(storage.address, "webdataset").splits["train"].digest
    (kept,) = (tmp_path / "cache/gear-dist/tar-index").iterdir()
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    for spoilt in (bytes(data), b"", b"short"):
        kept.write_bytes(spoilt)
        reads.clear()
        assert listed(storage.address, "webdataset").splits["train"].digest == first
        assert reads


@pytest.mark.usefixtures("settled")
def test_the_oldest_indexes_make_room(
    reads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(f"{ROOT}/many")
    for number in range(4):
        storage.write(f"{number}.tar", tar_bytes(images(number, 3)))
    listed(storage.address, "webdataset")
    folder = tmp_path / "cache/gear-dist/tar-index"
    assert len(list(folder.iterdir())) == 4
    monkeypatch.setattr(
        index_cache, "MAX_BYTES", 2 * max(p.stat().st_size for p in folder.iterdir())
    )
    storage.write("4.tar", tar_bytes(images(4, 3)))
    listed(storage.address, "webdataset")
    assert len(list(folder.iterdir())) == 2


def test_a_tar_that_was_replaced_by_one_of_the_same_size(reads: list[str]) -> None:
    """The embedded store gives no tags, and tells the time of change in seconds."""
    storage = open_storage(f"{ROOT}/replaced")
    first, second = (
        tar_bytes({f"{number}.jpg": bytes(size) for number, size in enumerate(sizes)})
        for sizes in ((600, 100), (100, 600))
    )
    assert len(first) == len(second)
    storage.write("0.tar", first)
    before = listed(storage.address, "webdataset", 1).splits["train"].digest
    storage.write("0.tar", second)
    assert listed(storage.address, "webdataset", 1).splits["train"].digest != before


def test_a_tag_of_time_waits_until_a_change_would_show(object_store: StoreEndpoint) -> None:
    storage = open_storage(f"{ROOT}/time")
    storage.write("k", b"1")
    assert storage.tag("k") == ""
    time.sleep(s3.SETTLED_S + 1)
    first = storage.tag("k")
    assert first == storage.tag("k") != ""
    storage.write("k", b"2")
    assert storage.tag("k") == ""
    time.sleep(s3.SETTLED_S + 1)
    assert storage.tag("k") not in ("", first)


def test_indexes_in_a_folder_of_others_are_not_believed(
    reads: list[str], tmp_path: Path, settled: None
) -> None:
    storage = open_storage(f"{ROOT}/open")
    storage.write("0.tar", tar_bytes(images(0, 3)))
    listed(storage.address, "webdataset")
    (tmp_path / "cache").chmod(0o777)
    reads.clear()
    listed(storage.address, "webdataset")
    assert reads


def test_a_machine_without_a_cache_folder(
    reads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    storage = open_storage(f"{ROOT}/nowhere")
    storage.write("0.tar", tar_bytes(images(0, 3)))
    assert listed(storage.address, "webdataset").splits["train"].num_samples == 3


def test_local_tars_are_read_anew(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(tar_bytes(images(0, 3)))
    assert listed(str(tmp_path), "webdataset").splits["train"].num_samples == 3
    assert not (tmp_path / "cache").exists()
