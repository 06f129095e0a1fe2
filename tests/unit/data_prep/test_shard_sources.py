"""Every kind of source: what arrives in the shards, splits, classes, captions, and refusals."""

import json
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from gear_data_prep.__main__ import main as data_prep
from gear_data_prep.sources import make_spec, open_source, parquet_rows
from gear_data_prep.sources.base import Source
from gear_data_prep.sources.files import SourceOptions
from gear_dist.data.manifest import load_manifest, load_samples
from gear_dist.errors import ConfigError, DataError
from gear_dist.storage.open import open_storage
from image_files import contents, encode, tar_bytes
from refusals import refused


def shard(source: Path | str, out: Path | str, *options: str) -> None:
    assert data_prep(["shard", str(source), str(out), "--workers", "1", *options]) == 0


def samples_of(folder: Path) -> list[dict]:
    urls = sorted(str(path) for path in (folder / "shards").iterdir())
    return list(webdataset.WebDataset(urls, shardshuffle=False))


def open_kind(path: Path, kind: str = "auto", **options) -> Source:
    return open_source(make_spec(str(path), kind, SourceOptions(**options)))


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imagenet")
    inner = {
        f"n0{c}.tar": tar_bytes({f"n0{c}_{k}.JPEG": encode(100 * c + k) for k in range(20)})
        for c in range(5)
    }
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes(inner))
    names = [f"ILSVRC2012_val_{k:08d}.JPEG" for k in range(10)]
    images = {name: encode(1000 + k) for k, name in enumerate(names)}
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar_bytes(images))
    (folder / "labels.txt").write_text("".join(f"n0{k % 5}\n" for k in range(10)))
    rows = [f"{name[:-5]},n0{k % 5} 1 2 3 4 n03 5 6 7 8\n" for k, name in enumerate(names)]
    (folder / "solution.csv").write_text("".join(rows))
    return folder


def test_imagenet_tar_of_tars(imagenet: Path, tmp_path: Path) -> None:
    labels = str(imagenet / "labels.txt")
    options = ("--labels", labels, "--shard-samples", "25", "--block-samples", "4")
    shard(imagenet, tmp_path, *options)
    found = samples_of(tmp_path / "train")
    originals = {encode(100 * c + k): c for c in range(5) for k in range(20)}
    assert Counter((s["jpg"], int(s["cls"])) for s in found) == Counter(originals.items())
    assert load_manifest(open_storage(str(tmp_path / "train"))).info.classes == tuple(
        f"n0{c}" for c in range(5)
    )
    held = {s["jpg"]: int(s["cls"]) for s in samples_of(tmp_path / "validation")}
    assert held == {encode(1000 + k): k % 5 for k in range(10)}


def test_imagenet_classes_are_mixed_in_every_shard(imagenet: Path, tmp_path: Path) -> None:
    shard(imagenet, tmp_path, "--shard-samples", "26", "--block-samples", "2")
    table = load_samples(open_storage(str(tmp_path / "train"))).to_pydict()
    labels, shards = np.array(table["class_index"]), np.array(table["shard"])
    for number in range(max(table["shard"]) + 1):
        inside = labels[shards == number]
        assert len(set(inside)) >= 4
        assert np.abs(np.diff(inside)).mean() > 0.5, "samples are shuffled within the shard"


def test_imagenet_labels_by_name(imagenet: Path) -> None:
    by_line = open_kind(imagenet, labels=str(imagenet / "labels.txt")).splits["validation"].units
    by_name = open_kind(imagenet, labels=str(imagenet / "solution.csv")).splits["validation"].units
    assert [unit.class_index for unit in by_line] == [unit.class_index for unit in by_name]
    (imagenet / "short.txt").write_text("n00\nn01\n")
    with refused(DataError, imagenet / "short.txt", "2 labels", "10 images"):
        open_kind(imagenet, labels=str(imagenet / "short.txt"))
    (imagenet / "wrong.csv").write_text("ILSVRC2012_val_00000000,n77\n")
    with refused(DataError, imagenet / "wrong.csv", "ILSVRC2012_val_00000000", "class"):
        open_kind(imagenet, labels=str(imagenet / "wrong.csv"))


def test_webdataset_of_others(tmp_path: Path) -> None:
    """GPIC's JSON, text files, classes, names with folders, pax and hidden members."""
    source = tmp_path / "source"
    source.mkdir()
    first = {
        "./a/0001.jpg": encode(1),
        "./a/0001.json": json.dumps({"caption": "from json", "width": 5, "url": "x"}).encode(),
        "a/0002.png": encode(2, "PNG"),
        "a/0002.txt": b"from text",
        "a/._0002.png": b"junk of a file system",
        "b/0001.jpg": encode(3),
        "b/0001.cls": b"7\n",
    }
    long_name = "c" * 200
    second = {
        f"{long_name}.jpg": encode(4),
        f"{long_name}.json": json.dumps({"captions": ["one", "two"], "hue": 3}).encode(),
        "d.jpeg": encode(5),
    }
    (source / "00.tar").write_bytes(tar_bytes(first, format=tarfile.GNU_FORMAT))
    (source / "01.tar").write_bytes(tar_bytes(second, format=tarfile.PAX_FORMAT))
    shard(source, tmp_path / "out", "--validation-share", "0", "--block-samples", "1")
    by_image = {s.get("jpg", s.get("png")): s for s in samples_of(tmp_path / "out/train")}
    assert set(by_image) == {encode(1), encode(2, "PNG"), encode(3), encode(4), encode(5)}
    assert by_image[encode(1)]["txt"] == b"from json"
    assert "json" not in by_image[encode(1)], "a downloader's metadata are no attributes"
    assert by_image[encode(2, "PNG")]["txt"] == b"from text"
    assert by_image[encode(3)]["cls"] == b"7"
    several = by_image[encode(4)]
    assert several["txt"] == b"one"
    assert json.loads(several["json"]) == {"captions": ["one", "two"], "hue": 3}
    info = load_manifest(open_storage(str(tmp_path / "out/train"))).info
    assert info.classes == tuple("01234567"), "numbers where there are no names"


def test_our_own_shards_are_a_source(sample_shards, tmp_path: Path) -> None:
    """Re-sharding keeps images, classes, captions and attributes."""
    source = Path(open_storage(sample_shards.file).root) / "train"
    shard(source, tmp_path, "--validation-share", "0", "--shard-samples", "70")

    def bare(samples: list[dict]) -> Counter:
        return Counter((s["jpg"], s["cls"], s["txt"], s["json"]) for s in samples)

    assert bare(samples_of(tmp_path / "train")) == bare(samples_of(source))


def test_webdataset_on_s3_gives_the_same_bytes(sample_shards, tmp_path: Path) -> None:
    local = Path(open_storage(sample_shards.file).root) / "train"
    shard(local, tmp_path / "local", "--shard-samples", "30")
    shard(f"{sample_shards.s3}/train", tmp_path / "remote", "--shard-samples", "30")
    ours, theirs = contents(tmp_path / "local"), contents(tmp_path / "remote")
    shards = [name for name in ours if name.endswith(".tar") or "samples-" in name]
    assert len(shards) > 4
    assert all(ours[name] == theirs[name] for name in shards)


def test_image_folder_on_s3(sample_shards, object_store, tmp_path: Path) -> None:
    bucket = open_storage("s3://gear-tests-tree/x")
    images = {f"{c}/{k}.jpg": encode(10 * ord(c) + k) for c in "ab" for k in range(6)}
    for key, data in images.items():
        bucket.write(key, data)
    bucket.write("a/0.txt", b"hello")
    shard("s3://gear-tests-tree/x", tmp_path, "--kind", "folder", "--validation-share", "0")
    found = samples_of(tmp_path / "train")
    assert {s["jpg"] for s in found} == set(images.values())
    assert [s["txt"] for s in found if "txt" in s] == [b"hello"]


def write_parquet(path: Path, rows: int = 40, row_group: int = 10, first: int = 0) -> None:
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("captions", pa.list_(pa.string())),
            ("label", pa.int64()),
        ],
        metadata={
            b"huggingface": json.dumps(
                {"info": {"features": {"label": {"names": ["cat", "dog"]}}}}
            ).encode()
        },
    )
    table = [
        {
            "image": {"bytes": encode(first + k), "path": f"{k}.jpg"},
            "captions": [f"image {first + k}", "again"],
            "label": k % 2,
        }
        for k in range(rows)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(table, schema), path, row_group_size=row_group)


def test_parquet_in_the_hugging_face_layout(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data/train-00000-of-00002.parquet")
    write_parquet(tmp_path / "data/train-00001-of-00002.parquet", first=40)
    write_parquet(tmp_path / "data/validation-00000-of-00001.parquet", 10, first=80)
    shard(tmp_path / "data", tmp_path / "out", "--shard-samples", "30")
    found = samples_of(tmp_path / "out/train")
    assert {s["jpg"]: s["txt"].decode() for s in found} == {
        encode(k): f"image {k}" for k in range(80)
    }
    assert {int(s["cls"]) for s in found} == {0, 1}
    info = load_manifest(open_storage(str(tmp_path / "out/train"))).info
    assert (info.classes, info.num_shards) == (("cat", "dog"), 3)
    rows = load_samples(open_storage(str(tmp_path / "out/validation"))).to_pydict()
    assert rows["num_captions"] == [2] * 10
    order = [int(s["txt"].split()[1]) for s in found]
    assert abs(np.corrcoef(order, range(80))[0, 1]) < 0.5


def test_parquet_columns(tmp_path: Path) -> None:
    table = pa.table({"pixels": [encode(k) for k in range(4)], "words": list("abcd")})
    pq.write_table(table, tmp_path / "x.parquet")
    with refused(
        ConfigError, "x.parquet", "column", "pixels, words", "--image-column", "--kind urls"
    ):
        open_kind(tmp_path / "x.parquet")
    with refused(ConfigError, "column nope", "pixels, words"):
        open_kind(tmp_path / "x.parquet", image_column="nope")
    shard(tmp_path / "x.parquet", tmp_path / "out", "--image-column=pixels",
          "--caption-column=words", "--validation-share=0")  # fmt: skip
    assert {s["txt"] for s in samples_of(tmp_path / "out/train")} == {b"a", b"b", b"c", b"d"}


def test_bad_cells_and_texts_are_quarantined(tmp_path: Path) -> None:
    captions = pa.array(["fine", b"\xff\xfe", "  ", None], pa.binary()).view(pa.string())
    images = [encode(0), encode(1), encode(2), None]
    pq.write_table(pa.table({"image": images, "caption": captions}), tmp_path / "x.parquet")
    options = ("--max-bad-share", "1", "--validation-share=0", "--policy", "no-caption=quarantine")
    shard(tmp_path / "x.parquet", tmp_path / "out", *options)
    report = json.loads((tmp_path / "out/train/manifest/quarantine.json").read_text())
    assert report["kinds"] == {"bad-caption": 1, "empty": 1, "no-caption": 1}
    assert [s["txt"] for s in samples_of(tmp_path / "out/train")] == [b"fine"]


def test_numbers_that_are_no_class_are_left_out(tmp_path: Path) -> None:
    """Each number below a class is a class too: an id would name a billion of them."""
    table = pa.table({"image": [encode(i) for i in range(3)], "label": [0, 10**12, 2**31 - 1]})
    pq.write_table(table, tmp_path / "x.parquet")
    out = tmp_path / "out"
    shard(tmp_path / "x.parquet", out, "--max-bad-share", "1", "--validation-share=0")
    assert [s["cls"] for s in samples_of(tmp_path / "out/train")] == [b"0"]


def test_links_in_a_circle_are_no_images(tmp_path: Path) -> None:
    folder = tmp_path / "tree/a"
    folder.mkdir(parents=True)
    for number in range(2):
        (folder / f"{number}.jpg").write_bytes(encode(number))
        (folder / f"{number}.txt").symlink_to(f"{number}.txt")
    shard(tmp_path / "tree", tmp_path / "out", "--validation-share=0")
    assert len(samples_of(tmp_path / "out/train")) == 2


def _cut_tar(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30000])


def _flip_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    position = data.rindex(b"ustar")
    data[position - 200] ^= 0x55
    path.write_bytes(data)


@pytest.mark.parametrize("spoil", [_cut_tar, _flip_header])
def test_broken_tars_keep_what_is_before_the_break(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    members = {f"{k:03d}.jpg": encode(k, size=(300, 200)) for k in range(20)}
    (tmp_path / "source").mkdir()
    (tmp_path / "source/0.tar").write_bytes(tar_bytes(members))
    spoil(tmp_path / "source/0.tar")
    shard(tmp_path / "source", tmp_path / "out", "--max-bad-share", "0.5", "--validation-share=0")
    report = json.loads((tmp_path / "out/train/manifest/quarantine.json").read_text())
    assert report["kinds"] == {"broken-tar": 1}
    assert report["samples"][0]["name"] == "0.tar"
    kept = {s["jpg"] for s in samples_of(tmp_path / "out/train")}
    assert len(kept) >= 10
    assert kept <= set(members.values())


def test_a_source_that_changes_after_the_listing(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(tar_bytes({f"{k}.jpg": encode(k) for k in range(6)}))
    source = open_kind(tmp_path, validation_share=0.0)
    (tmp_path / "0.tar").write_bytes(tar_bytes({f"{k}.bin": b"x" * 3000 for k in range(6)}))
    with refused(DataError, "0.tar", "bytes"):
        source.reader.read(source.splits["train"].units[0])


@pytest.mark.parametrize(
    ("kind", "name", "data", "words"),
    [
        ("webdataset", "x.txt", b"", [".tar files"]),
        ("webdataset", "x.tar", b"no tar at all" * 100, ["samples", "x.tar", "header"]),
        ("webdataset", "x.tar", b"", ["samples", "x.tar", "0 bytes"]),
        ("parquet", "x.parquet", b"PAR1", ["/x.parquet", "4 bytes"]),
        ("imagenet", "x.tar", b"", ["/x.tar", "images"]),
        ("folder", "x.jpg", b"", ["no images", "CLASS/NAME.jpg", "--kind"]),
    ],
)
def test_sources_that_are_none(
    tmp_path: Path, kind: str, name: str, data: bytes, words: list[str]
) -> None:
    (tmp_path / name).write_bytes(data)
    with refused(DataError, tmp_path, *words):
        open_kind(tmp_path, kind)


def test_the_kind_is_found(imagenet: Path, tmp_path: Path) -> None:
    def kind(path: Path) -> str:
        return make_spec(str(path), "auto", SourceOptions()).kind

    (tmp_path / "a/data").mkdir(parents=True)
    (tmp_path / "a/data/x.parquet").touch()
    (tmp_path / "b").mkdir()
    (tmp_path / "b/0.tar").touch()
    (tmp_path / "c.csv").touch()
    (tmp_path / "d/cat").mkdir(parents=True)
    found = [kind(imagenet), *(kind(tmp_path / n) for n in ("a", "b", "c.csv", "d"))]
    assert found == ["imagenet", "parquet", "webdataset", "urls", "folder"]
    with refused(ConfigError, "--kind nope", "auto", "folder", "urls"):
        make_spec(str(tmp_path), "nope", SourceOptions())
    with refused(DataError, tmp_path / "nothing", "no such"):
        kind(tmp_path / "nothing")


def test_a_folder_that_links_to_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.jpg").write_bytes(encode())
    (tmp_path / "a/loop").symlink_to(tmp_path)
    assert open_kind(tmp_path, "folder").splits["train"].num_samples == 1


def test_samples_that_would_fill_the_memory_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gear_data_prep.sources import image_folder, tar_runs

    for module in (image_folder, tar_runs):
        monkeypatch.setattr(module, "MAX_SAMPLE_BYTES", 20_000)
    members = {"a.jpg": encode(1), "b.jpg": b"\xff\xd8\xff" * 10_000, "c.jpg": encode(2)}
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/0.tar").write_bytes(tar_bytes(members))
    (tmp_path / "tree/x").mkdir(parents=True)
    for name, data in members.items():
        (tmp_path / "tree/x" / name).write_bytes(data)
    (tmp_path / "tree/x/a.txt").write_bytes(b"y" * (2 << 20))
    for name, left, bad in (("tars", 2, 1), ("tree", 1, 2)):
        out = tmp_path / f"out-{name}"
        shard(tmp_path / name, out, "--max-bad-share", "1", "--validation-share", "0")
        report = json.loads((out / "train/manifest/quarantine.json").read_text())
        assert report["kinds"] == {"too-large": bad}
        assert len(samples_of(out / "train")) == left


def test_damaged_parquet_is_refused_or_read(tmp_path: Path) -> None:
    """Changed footers make pyarrow raise errors of many kinds: all are the user's."""
    path = tmp_path / "x.parquet"
    write_parquet(path, 8)
    data = path.read_bytes()
    footer = int.from_bytes(data[-8:-4], "little") + 8
    rng = np.random.default_rng(0)
    refused = 0
    for position in rng.integers(len(data) - footer, len(data), 300):
        changed = bytearray(data)
        changed[position] = int(rng.integers(256))
        path.write_bytes(changed)
        try:
            source = open_kind(path)
            for unit in source.splits["train"].units:
                source.reader.read(unit)
        except (DataError, ConfigError):
            refused += 1
    assert refused > 10


def test_runs_within_a_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that do not begin at a batch's beginning, of one row group that is cut into runs."""
    write_parquet(tmp_path / "x.parquet", 150, row_group=150)
    size = pq.ParquetFile(tmp_path / "x.parquet").metadata.row_group(0).total_byte_size
    monkeypatch.setattr(parquet_rows, "MAX_RUN_BYTES", size // 7)
    source = open_kind(tmp_path / "x.parquet", validation_share=0.0)
    units = source.splits["train"].units
    assert len(units) >= 7
    rows = [raw for unit in units for raw in source.reader.read(unit)]
    assert [raw.image for raw in rows] == [encode(k) for k in range(150)]
    assert [raw.name for raw in rows] == [f"x.parquet:{k}" for k in range(150)]
    assert [raw.image for raw in source.reader.read(units[5])] == [
        encode(k) for k in range(units[5].first, units[5].first + units[5].num_samples)
    ]


@pytest.mark.slow(reason="writes and reads a file of 2.2 GiB")
def test_a_row_group_of_more_than_2_gib(tmp_path: Path) -> None:
    """What `pq.write_table` makes of many pictures by default; read in a fraction of its size."""
    noise = np.random.default_rng(0).integers(0, 256, (1 << 20) + 100, np.uint8).tobytes()
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
        ]
    )
    rows = [
        {"image": {"bytes": noise[k : k + (1 << 20)], "path": f"{k}.jpg"}, "label": k}
        for k in range(100)
    ]
    part = pa.Table.from_pylist(rows, schema)
    options = {"compression": "none", "use_dictionary": False}
    pq.write_table(pa.concat_tables([part] * 22), tmp_path / "x.parquet", **options)
    del part, rows
    metadata = pq.ParquetFile(tmp_path / "x.parquet").metadata
    assert (metadata.num_row_groups, metadata.row_group(0).total_byte_size > 2**31) == (1, True)
    code = (
        "import sys\n"
        "from gear_data_prep.sources import make_spec, open_source\n"
        "from gear_data_prep.sources.files import SourceOptions\n"
        "options = SourceOptions(validation_share=0)\n"
        "source = open_source(make_spec(sys.argv[1], 'parquet', options))\n"
        "units = list(source.splits['train'].units)\n"
        "assert sum(unit.num_samples for unit in units) == 2200, units\n"
        "for unit in (units[0], units[-1]):\n"
        "    found = source.reader.read(unit)\n"
        "    labels = [raw.class_index for raw in found]\n"
        "    assert labels == [(unit.first + i) % 100 for i in range(len(found))], labels\n"
        "    assert all(len(raw.image) == 1 << 20 for raw in found)\n"
        "status = open('/proc/self/status').read()\n"  # ru_maxrss begins with the parent's
        "print(int(status.split('VmHWM:')[1].split()[0]) << 10)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x.parquet")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    (tmp_path / "x.parquet").unlink()
    assert int(run.stdout) < 3 << 29
