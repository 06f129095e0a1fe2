"""Stock tars mean what webdataset makes of them: in the loader's index and in `gear-dist shard`."""

import io
import json
import random
import tarfile
import warnings
from pathlib import Path

import pytest
import webdataset

from gear_data_prep.__main__ import main as data_prep
from gear_data_prep.samples import RawSample
from gear_data_prep.sources import make_spec, open_source
from gear_data_prep.sources.files import SourceOptions
from gear_dist.data.corpus import open_corpus
from gear_dist.data.shard_reader import UnreadableSampleError, index_samples
from gear_dist.data.tar_members import list_members
from gear_dist.data.tar_samples import group_samples
from gear_dist.errors import DataError
from image_files import encode
from loader_cases import make_loader, take
from refusals import refused

Parts = tuple[str, dict[str, bytes]]


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_tar(path: Path, members: list[tuple[str, bytes]], format_: int = tarfile.GNU_FORMAT):
    """A tar whose names may come again; those that end with / are folders, with -> are links."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format_) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name.rstrip("/").removesuffix("->"))
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            elif name.endswith("->"):
                info.type, info.linkname = tarfile.SYMTYPE, "elsewhere"
            else:
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return path


def by_webdataset(path: Path) -> list[Parts]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of members that come twice
        pipeline = webdataset.WebDataset(
            str(path), shardshuffle=False, handler=webdataset.warn_and_continue
        )
        return [
            (sample["__key__"], {k: v for k, v in sample.items() if not k.startswith("__")})
            for sample in pipeline
        ]


def by_ours(path: Path) -> list[Parts]:
    data = path.read_bytes()
    return [
        (
            sample.key,
            {s: data[m.offset : m.offset + m.size] for s, m in sample.members.items()},
        )
        for sample in group_samples(list_members(data))
    ]


def read_by_shard(path: Path, block_samples: int = 1) -> list[RawSample]:
    options = SourceOptions(validation_share=0, block_samples=block_samples)
    source = open_source(make_spec(str(path), "webdataset", options))
    return [raw for unit in source.splits["train"].units for raw in source.reader.read(unit)]


ODD = [
    "a/", "a/0.jpg", "a/0.txt", "a/0.cls", "b/0.jpg", "b/0.txt", "a/0.jpg", "a/0.txt",
    "./c.d/0.jpg", "./c.d/0.txt", "c.d/e.jpg", "README", "1.JPG", "LICENSE", "1.Txt", "1.txt",
    "1.seg.png", "2.depth.png", "2.jpg", "link.jpg->", "2.cls", "__meta__/0.jpg", "__x__", "3.png",
    "3.jpg", "3.jpg", "3.cls", "x y/ü.jpg", "x y/ü.json", "1.jpg", "4.mask.png", "4.rgb.png",
    "f" * 90 + "/" + "g" * 90 + ".jpg", "5.txt", "5.TXT", "5.jpg", "a/0.png",
]  # fmt: skip


def content(name: str, number: int) -> bytes:
    return f"{number}:{name}".encode() * 40


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_odd_tars_are_webdatasets(tmp_path: Path, format_: int) -> None:
    random_names = random.Random(0)
    listings = [ODD, *(random_names.sample(ODD, len(ODD)) for _ in range(8))]
    for names in listings:
        members = [(name, content(name, number)) for number, name in enumerate(names)]
        path = write_tar(tmp_path / "0.tar", members, format_)
        expected = by_webdataset(path)
        assert by_ours(path) == expected
        pictures = [(key, parts) for key, parts in expected if {"jpg", "png"} & set(parts)]
        shard = index_samples(path.read_bytes())
        assert shard.keys == [key for key, _ in pictures]
        assert shard.num_left_out == len(expected) - len(pictures)
        for block_samples in (1, 5):
            found = read_by_shard(path, block_samples)
            assert [raw.name for raw in found] == [f"0.tar/{key}" for key, _ in expected]
            for raw, (_, parts) in zip(found, expected, strict=True):
                picture = parts.get("jpg", parts.get("png"))
                assert picture is None or raw.image == picture or raw.problem


def test_a_key_that_returns_is_another_sample(tmp_path: Path) -> None:
    """Each with its own caption and class, in training as in a corpus that is made of the tar."""
    members = [
        (f"{k % 8}.{suffix}", data)
        for k in range(16)
        for suffix, data in (("jpg", encode(k)), ("cls", b"%d" % k), ("txt", b"caption %d" % k))
    ]
    tar = write_tar(tmp_path / "tars/0.tar", members)
    (batch,) = take(make_loader(str(tar.parent), batch_size=16, captions="first"), 1)
    assert sorted(batch.labels.tolist()) == list(range(16))
    assert batch.captions == tuple(f"caption {label}" for label in batch.labels.tolist())
    out = tmp_path / "out"
    assert data_prep(["shard", str(tar.parent), str(out), "--validation-share", "0"]) == 0
    made = by_webdataset(out / "train/shards/000000.tar")
    assert {(int(p["cls"]), p["txt"].decode(), p["jpg"]) for _, p in made} == {
        (k, f"caption {k}", encode(k)) for k in range(16)
    }


@pytest.mark.parametrize("name", ["photo.{:03d}", "{}.05", "a.b/photo.v{}.final"])
def test_names_that_go_on_with_numbers(tmp_path: Path, name: str) -> None:
    members = [
        (f"{name.format(k)}.{suffix}", data)
        for k in range(6)
        for suffix, data in (("jpg", encode(k)), ("cls", b"%d" % k), ("seg.png", b"mask"))
    ]
    if name.endswith("final"):
        members = [member for member in members if not member[0].endswith("seg.png")]
    tar = write_tar(tmp_path / "tars/0.tar", members)
    for raws in (read_by_shard(tar, 1), read_by_shard(tar, 4)):
        found = [(raw.image, raw.class_index) for raw in raws]
        assert found == [(encode(k), k) for k in range(6)]
    if not name.endswith("final"):
        (batch,) = take(make_loader(str(tar.parent), batch_size=6), 1)
        assert sorted(batch.labels.tolist()) == list(range(6))


def report_of(out: Path) -> dict:
    return json.loads((out / "train/manifest/quarantine.json").read_text())


def test_the_picture_is_the_one_with_a_plain_name(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    members = [
        (f"{k:04d}.{suffix}", data)
        for k in range(6)
        for suffix, data in (("cls", b"1"), ("depth.png", encode(k, "PNG")), ("jpg", encode(k)))
    ]
    tar = write_tar(tmp_path / "tars/0.tar", members)
    command = ["shard", str(tar), str(tmp_path / "out"), "--validation-share", "0", "--json"]
    assert data_prep(command) == 0
    made = by_webdataset(tmp_path / "out/train/shards/000000.tar")
    assert {parts["jpg"] for _, parts in made} == {encode(k) for k in range(6)}
    assert json.loads(capsys.readouterr().out)["splits"]["train"]["odd"] == {"extra-image": 6}
    assert data_prep(command) == 0
    again = json.loads(capsys.readouterr().out)["splits"]["train"]
    assert (again["reused"], again["odd"]) == (True, {"extra-image": 6})
    assert report_of(tmp_path / "out")["odd"] == {"extra-image": 6}
    command[2] = str(tmp_path / "none")
    assert data_prep([*command, "--policy", "extra-image=quarantine"]) == 3


def test_several_images_without_a_plain_name_are_refused(tmp_path: Path) -> None:
    members = [(f"{k}.{s}", encode(k, "PNG")) for k in range(4) for s in ("mask.png", "rgb.png")]
    good = [(f"x{k}.jpg", encode(k)) for k in range(4)]
    tar = write_tar(tmp_path / "tars/0.tar", members + good)
    out = tmp_path / "out"
    options = ["--validation-share", "0", "--max-bad-share", "1"]
    assert data_prep(["shard", str(tar), str(out), *options]) == 0
    assert report_of(out)["kinds"] == {"no-image": 4}
    assert len(by_webdataset(out / "train/shards/000000.tar")) == 4
    with pytest.warns(UserWarning, match="4 samples are left out"):
        assert open_corpus(str(tar.parent)).manifest.info.num_samples == 4


def test_two_members_of_one_name(tmp_path: Path) -> None:
    """webdataset refuses them: they are bad samples here and there, or the first by choice."""
    members = [("0.jpg", encode(0)), ("1.jpg", encode(1)), ("1.JPG", encode(2)), ("1.cls", b"1")]
    tar = write_tar(tmp_path / "tars/0.tar", members)
    with pytest.raises(ValueError, match="duplicate"):
        list(webdataset.WebDataset(str(tar), shardshuffle=False))
    shard = index_samples(tar.read_bytes())
    assert shard.image(0) == encode(0)
    with refused(UnreadableSampleError, "1.JPG"):
        shard.image(1)
    options = ["--validation-share", "0", "--max-bad-share", "1"]
    assert data_prep(["shard", str(tar), str(tmp_path / "out"), *options]) == 0
    assert report_of(tmp_path / "out")["kinds"] == {"duplicate-name": 1}
    options += ["--policy", "duplicate-name=keep"]
    assert data_prep(["shard", str(tar), str(tmp_path / "kept"), *options]) == 0
    made = by_webdataset(tmp_path / "kept/train/shards/000000.tar")
    assert {parts["jpg"] for _, parts in made} == {encode(0), encode(1)}
    assert report_of(tmp_path / "kept")["odd"] == {"duplicate-name": 1}


def test_empty_and_cut_tars_are_told_of(tmp_path: Path) -> None:
    """Nothing in a tar of 0 bytes, and no end marker: neither passes for whole."""
    for number in range(3):
        members = [(f"{number}{k:03d}.jpg", encode(10 * number + k)) for k in range(6)]
        write_tar(tmp_path / f"in/{number}.tar", members)
    (tmp_path / "in/1.tar").write_bytes(b"")
    data = (tmp_path / "in/2.tar").read_bytes()
    (tmp_path / "in/2.tar").write_bytes(data[: data.index(b"2003.jpg")])
    command = ["shard", str(tmp_path / "in"), str(tmp_path / "out"), "--validation-share", "0"]
    assert data_prep(command) == 3
    assert data_prep([*command, "--max-bad-share", "0.5"]) == 0
    rows = report_of(tmp_path / "out")["samples"]
    assert [(row["name"], row["kind"]) for row in rows] == [
        ("1.tar", "broken-tar"),
        ("2.tar", "broken-tar"),
    ]
    assert len(by_webdataset(tmp_path / "out/train/shards/000000.tar")) == 9
    with refused(DataError, tmp_path / "in/1.tar"):
        open_corpus(str(tmp_path / "in"))


def test_a_last_sample_that_is_cut_is_left_out(tmp_path: Path) -> None:
    """Between an image and its caption: without a caption it would pass for one that has none."""
    members = [(f"{k}.{s}", encode(k) if s == "jpg" else b"text") for k in range(3)
               for s in ("jpg", "txt")]  # fmt: skip
    data = write_tar(tmp_path / "0.tar", members).read_bytes()
    (tmp_path / "0.tar").write_bytes(data[: data.index(b"2.txt")])
    assert [raw.image for raw in read_by_shard(tmp_path / "0.tar")] == [encode(0), encode(1)]
    (tmp_path / "0.tar").write_bytes(data[: data.index(b"2.jpg")])
    assert [raw.image for raw in read_by_shard(tmp_path / "0.tar")] == [encode(0), encode(1)]


def test_hidden_files_are_no_parts(tmp_path: Path) -> None:
    names = ["a/0.jpg", "a/._0.txt", "a/0.txt", "._b", "a/.DS_Store", "a/1.jpg"]
    path = write_tar(tmp_path / "0.tar", [(name, name.encode()) for name in names])
    assert [(key, list(parts)) for key, parts in by_ours(path)] == [
        ("a/0", ["jpg", "txt"]),
        ("a/1", ["jpg"]),
    ]
