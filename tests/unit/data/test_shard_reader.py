"""Reading shards: our own tar parser, samples of several layouts, corrupt shards and manifests."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest
import webdataset

from gear_dist.data.corpus import open_corpus
from gear_dist.data.manifest import DATASET_KEY, SHARDS_KEY, load_manifest
from gear_dist.data.shard_reader import UnreadableSampleError, index_samples
from gear_dist.data.tar_members import TarDamageError, list_members
from gear_dist.data.tar_writer import TarWriter
from gear_dist.errors import DataError
from gear_dist.storage.base import MissingObjectError
from gear_dist.storage.local import FileStorage
from gear_dist.storage.open import open_storage
from loader_cases import make_loader, take, tar_of
from refusals import refused
from sample_shards import SampleShards


@pytest.fixture
def own_copy(sample_shards: SampleShards, tmp_path: Path) -> FileStorage:
    """The training corpus in a folder that a test may spoil."""
    source = Path(open_storage(f"{sample_shards.file}/train").root)
    shutil.copytree(source, tmp_path / "copy")
    return FileStorage(tmp_path / "copy")


def test_our_parser_agrees_with_tarfile() -> None:
    stream = io.BytesIO()
    with webdataset.TarWriter(stream) as writer:
        for number in range(5):
            writer.write({"__key__": f"k{number}", "jpg": b"x" * 500 * number, "cls": b"3"})
    long_name = "d/" + "n" * 150 + ".jpg"
    for format_ in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        other = io.BytesIO()
        with tarfile.open(fileobj=other, mode="w", format=format_) as tar:
            for name in ("a.jpg", "b.jpg" if format_ == tarfile.USTAR_FORMAT else long_name):
                info = tarfile.TarInfo(name)
                info.size = 700
                tar.addfile(info, io.BytesIO(b"y" * 700))
        for data in (stream.getvalue(), other.getvalue()):
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                expected = [(m.name, m.offset_data, m.size) for m in tar if m.isfile()]
            found = [(member.name, member.offset, member.size) for member in list_members(data)]
            assert found == expected


def test_every_cut_tar_is_noticed() -> None:
    stream = io.BytesIO()
    tar = TarWriter(stream)
    for number in range(3):
        tar.add(f"{number}.jpg", b"z" * 700)
    tar.finish()
    data = stream.getvalue()
    assert len(list_members(data)) == 3
    for length in (0, 100, 512, 1000, 1536, 3 * 1536):
        with refused(TarDamageError, "breaks off"):
            list_members(data[:length])
    with refused(TarDamageError, "header", "byte 0"):
        list_members(data[:5] + b"!" + data[6:])


def test_names_split_where_webdataset_splits_them() -> None:
    data = tar_of({"./a.b/0.jpg": b"1", "./a.b/0.cls": b"4", "1.seg.png": b"2", ".hidden": b"3"})
    shard = index_samples(data)
    assert shard.keys == ["./a.b/0"], "no image, no sample"
    assert (shard.image(0), shard.class_index(0)) == (b"1", 4)
    long_prefix = "p" * 120 + "/" + "n" * 50 + ".jpg"
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo(long_prefix))
    assert list_members(stream.getvalue())[0].name == long_prefix


@pytest.mark.parametrize(
    ("members", "captions"),
    [
        ({}, ()),
        ({"txt": b" a cat \n"}, ("a cat",)),
        ({"json": b'{"caption": "a dog"}', "txt": b"unused"}, ("a dog",)),
        ({"json": b'{"captions": ["one", "", "two", 3]}'}, ("one", "two")),
        ({"json": b'{"shape": 3}', "txt": b"a cat"}, ("a cat",)),
    ],
)
def test_captions(members: dict[str, bytes], captions: tuple[str, ...]) -> None:
    shard = index_samples(tar_of({"7.jpg": b"x"} | {f"7.{s}": d for s, d in members.items()}))
    assert shard.captions(0) == captions
    sample = shard.sample(0)
    assert sample.captions == captions
    assert sample.class_index == -1
    assert sample.attributes == ({"shape": 3} if b"shape" in members.get("json", b"") else {})


@pytest.mark.parametrize(
    ("suffix", "data", "member"),
    [
        ("cls", b"cat", "class b'cat'"),
        ("txt", b"\xff\xfe", "caption"),
        ("json", b"{", "JSON"),
        ("json", b"[1]", "JSON"),
    ],
)
def test_samples_that_cannot_be_read(suffix: str, data: bytes, member: str) -> None:
    shard = index_samples(tar_of({"7.jpg": b"x", f"7.{suffix}": data}))
    with refused(UnreadableSampleError, member):
        shard.sample(0)


def _flip_byte(storage: FileStorage) -> None:
    data = bytearray(storage.read("shards/000001.tar"))
    data[len(data) // 2] ^= 1
    storage.write("shards/000001.tar", bytes(data))


def _cut(storage: FileStorage) -> None:
    storage.write("shards/000001.tar", storage.read("shards/000001.tar")[:-2048])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_flip_byte, "checksum"),
        (_cut, "bytes"),
        (lambda storage: storage.delete("shards/000001.tar"), "missing"),
    ],
)
def test_corrupt_shards(own_copy: FileStorage, spoil, reason: str) -> None:
    spoil(own_copy)
    shard = f"{own_copy.address}/shards/000001.tar"
    with refused(DataError, shard, reason, "gear-dist shard", "--overwrite"):
        take(make_loader(own_copy.address), 12)


def _edit_facts(storage: FileStorage, **changes: object) -> None:
    facts = json.loads(storage.read("manifest/dataset.json"))
    storage.write("manifest/dataset.json", json.dumps({**facts, **changes}).encode())


@pytest.mark.parametrize(
    ("spoil", "key", "reason"),
    [
        (lambda s: s.delete(DATASET_KEY), DATASET_KEY, "finished"),
        (lambda s: s.write(DATASET_KEY, b"{"), DATASET_KEY, "gear-dist repair"),
        (lambda s: s.write(DATASET_KEY, b"{}"), DATASET_KEY, "gear-dist repair"),
        (lambda s: _edit_facts(s, schema_version=99), DATASET_KEY, "version 99"),
        (lambda s: _edit_facts(s, num_samples=7), SHARDS_KEY, "counts"),
        (lambda s: s.write(SHARDS_KEY, b"PAR1"), SHARDS_KEY, "checksum"),
    ],
)
def test_damaged_manifests(own_copy: FileStorage, spoil, key: str, reason: str) -> None:
    spoil(own_copy)
    with refused(DataError, own_copy.address, key, reason, "gear-dist shard"):
        load_manifest(own_copy)


def test_a_lost_table_of_shards(own_copy: FileStorage) -> None:
    own_copy.delete(SHARDS_KEY)
    with refused(MissingObjectError, own_copy.root / SHARDS_KEY):
        load_manifest(own_copy)


def test_no_corpus_there(tmp_path: Path, object_store: object) -> None:
    for address in (str(tmp_path), "s3://gear-tests/nothing", "s3://gear-tests-none/x"):
        with refused(DataError, address, "manifest/dataset.json", "corpus", "gear-dist shard"):
            open_corpus(address)
