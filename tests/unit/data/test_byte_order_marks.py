"""Texts by Windows editors: the mark before the text is no part of it, wherever it is read."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gear_data_prep.__main__ import main as data_prep
from gear_data_prep.sources.files import read_lines
from gear_dist.data.manifest import load_manifest
from gear_dist.data.shard_reader import Shard, index_samples
from gear_dist.storage.open import open_storage
from image_files import encode, tar_bytes
from loader_cases import tar_of

MARK = b"\xef\xbb\xbf"


def made(source: Path, out: Path, *options: str) -> Shard:
    command = ["shard", str(source), str(out), "--validation-share", "0", *options]
    assert data_prep(command) == 0
    return index_samples((out / "train/shards/000000.tar").read_bytes())


def captions(shard: Shard) -> set[str]:
    assert b"\xef\xbb\xbf" not in b"".join(
        shard.data[start : start + size]
        for parts in shard.parts
        for suffix, (start, size) in parts.items()
        if suffix in ("txt", "json", "cls")
    )
    return {text for row in range(len(shard.keys)) for text in shard.captions(row)}


def test_folders(tmp_path: Path) -> None:
    folder = tmp_path / "in/cat"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(encode(number))
    (folder / "0.txt").write_bytes(MARK + b"hello")
    (folder / "1.json").write_bytes(MARK + json.dumps({"captions": ["one", "two"]}).encode())
    (folder / "2.json").write_text(json.dumps({"captions": ["\ufeffthree", "four"]}))
    found = captions(made(tmp_path / "in", tmp_path / "out"))
    assert found == {"hello", "one", "two", "three", "four"}


def test_tars(tmp_path: Path) -> None:
    members = {
        "0.jpg": encode(0), "0.txt": MARK + b"hello", "0.cls": MARK + b"3",
        "1.jpg": encode(1), "1.json": MARK + b'{"caption": "from json"}',
    }  # fmt: skip
    (tmp_path / "0.tar").write_bytes(tar_bytes(members))
    shard = made(tmp_path / "0.tar", tmp_path / "out")
    assert captions(shard) == {"hello", "from json"}
    assert sorted(shard.class_index(row) for row in range(2)) == [-1, 3]


def test_stock_tars_in_the_loader() -> None:
    members = {"0.jpg": b"x", "0.txt": MARK + b"hello", "0.cls": MARK + b"3\n"}
    shard = index_samples(tar_of(members))
    assert (shard.captions(0), shard.class_index(0)) == (("hello",), 3)
    shard = index_samples(tar_of({"0.jpg": b"x", "0.json": MARK + b'{"caption": "\\ufeffhello"}'}))
    assert shard.captions(0) == ("hello",)


def test_parquet(tmp_path: Path) -> None:
    table = pa.table({"image": [encode(0), encode(1)], "caption": ["\ufeffhello", "again"]})
    pq.write_table(table, tmp_path / "x.parquet")
    assert captions(made(tmp_path / "x.parquet", tmp_path / "out")) == {"hello", "again"}


@pytest.mark.parametrize("option", ["--classes", "--labels"])
def test_lists(tmp_path: Path, option: str) -> None:
    (tmp_path / "names.txt").write_bytes(MARK + b"cat\r\ndog\r\n")
    assert read_lines(str(tmp_path / "names.txt")) == ["cat", "dog"]
    source = tmp_path / "source"
    source.mkdir()
    images = {f"n{k}.JPEG": encode(k) for k in range(2)}
    if option == "--classes":
        members = {name: data for k in range(2) for name, data in
                   ((f"{k}.jpg", encode(k)), (f"{k}.cls", b"%d" % k))}  # fmt: skip
        (source / "0.tar").write_bytes(tar_bytes(members))
    else:
        inner = {f"{name}.tar": tar_bytes({f"{name}_0.JPEG": encode(5)}) for name in ("cat", "dog")}
        (source / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes(inner))
        (source / "ILSVRC2012_img_val.tar").write_bytes(tar_bytes(images))
    made(source, tmp_path / "out", option, str(tmp_path / "names.txt"))
    info = load_manifest(open_storage(str(tmp_path / "out/train"))).info
    assert info.classes == ("cat", "dog")
