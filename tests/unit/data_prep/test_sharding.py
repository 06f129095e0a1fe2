"""`gear-dist shard`: what is in the shards, what is refused, what is left out."""

import hashlib
import io
import json
import shutil
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
import webdataset
import xxhash
from PIL import Image

from gear_data_prep.__main__ import main as data_prep
from gear_data_prep.sharding import pipeline
from gear_data_prep.sharding.plan import PlanSettings, plan_shards
from gear_data_prep.sources import make_spec, open_source
from gear_data_prep.sources.base import Source
from gear_data_prep.sources.files import SourceOptions
from gear_dist.data.manifest import load_manifest, load_samples
from gear_dist.data.tar_members import list_members
from gear_dist.distributed import task_pool
from gear_dist.errors import ConfigError, DataError, StorageError
from gear_dist.storage.base import MissingObjectError
from gear_dist.storage.checksums import crc64nvme_hex
from gear_dist.storage.open import open_storage
from refusals import has_word, refused
from sample_shards import SampleShards


def shard(source: Path, destination: Path | str, *options: str, workers: int = 1) -> int:
    words = ["shard", str(source), str(destination), "--workers", str(workers), *options]
    return data_prep(words)


def read_image_folder(root: Path, share: float) -> Source:
    return open_source(make_spec(str(root), "folder", SourceOptions(validation_share=share)))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    """20 images a class in two classes, without a split; png and jpg."""
    tree = tmp_path / "tree"
    for number in range(20):
        write_image(tree / f"dog/{number}.png", number)
        write_image(tree / f"cat/deep/{number}.JPEG", number)
    return tree


def test_any_number_of_processes_and_any_storage_give_the_same_bytes(
    sample_shards: SampleShards, tmp_path: Path
) -> None:
    assert shard(sample_shards.tree, tmp_path, "--shard-samples", "50", workers=2) == 0
    two = contents(tmp_path)
    assert two == contents(Path(open_storage(sample_shards.file).root))
    bucket = open_storage(sample_shards.s3)
    assert two == {item.key: bucket.read(item.key) for item in bucket.list()}
    assert sorted(two) == [
        *(f"train/manifest/{name}" for name in MANIFEST_FILES),
        *(f"train/shards/00000{number}.tar" for number in range(4)),
        *(f"validation/manifest/{name}" for name in MANIFEST_FILES),
        "validation/shards/000000.tar",
    ]


MANIFEST_FILES = (
    "dataset.json",
    "plan.json",
    "quarantine.json",
    "samples-00000.parquet",
    "shards.parquet",
)


def test_stock_webdataset_reads_the_shards(sample_shards: SampleShards) -> None:
    root = Path(open_storage(sample_shards.file).root) / "train"
    urls = sorted(str(path) for path in (root / "shards").iterdir())
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert len(samples) == 192
    assert len({sample["__key__"] for sample in samples}) == 192
    info = load_manifest(open_storage(str(root))).info
    for sample in samples[::20]:
        assert sample["jpg"].size == (32, 32)
        shape, texture = info.classes[sample["cls"]].split("_")
        assert f"{texture} {shape}" in sample["txt"]
        assert set(sample["json"]) == set(info.attributes)


def test_images_are_raw_copies_and_every_one_is_there(sample_shards: SampleShards) -> None:
    storage = open_storage(sample_shards.file + "/train")
    source = sorted(hashlib.sha256(p.read_bytes()).hexdigest() for p in _jpegs(sample_shards.tree))
    rows = load_samples(storage).to_pylist()
    copies = []
    for row in rows:
        data = storage.read_range(f"shards/{row['shard']:06d}.tar", row["offset"], row["bytes"])
        assert xxhash.xxh3_128_hexdigest(data) == row["xxh3"]
        assert Image.open(io.BytesIO(data)).size == (row["width"], row["height"]) == (32, 32)
        assert row["caption_chars"] > 20
        copies.append(hashlib.sha256(data).hexdigest())
    assert sorted(copies) == source
    assert [row["key"] for row in rows] == [f"{number:08d}" for number in range(192)]


def _jpegs(tree: Path) -> list[Path]:
    return list((tree / "train").rglob("*.jpg"))


def test_manifest(sample_shards: SampleShards) -> None:
    storage = open_storage(sample_shards.s3 + "/train")
    info, shards = load_manifest(storage)
    assert (info.num_samples, info.num_shards, len(info.classes)) == (192, 4, 16)
    assert info.attributes["shape"] == 4
    assert [info.samples for info in shards] == [50, 50, 50, 42]
    labels = np.array(load_samples(storage)["class_index"])
    assert np.bincount(labels).tolist() == [12] * 16
    for number, info in enumerate(shards):
        data = storage.read(info.key)
        assert (len(data), crc64nvme_hex(data)) == (info.bytes, info.crc64nvme)
        assert len(set(labels[50 * number : 50 * number + 50])) >= 12, "classes are mixed"


def test_split_by_share(small_tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert shard(small_tree, out, "--validation-share", "0.25") == 0
    train, held = (load_manifest(open_storage(f"{out}/{s}")).info for s in ("train", "validation"))
    assert train.classes == held.classes == ("cat", "dog")
    assert train.num_samples + held.num_samples == 40
    assert 4 <= held.num_samples <= 16
    tar = list_members((out / "train/shards/000000.tar").read_bytes())
    names = [member.name for member in tar if not member.name.endswith("cls")]
    assert {name.split(".")[1] for name in names} == {"jpg", "png"}
    before = {
        image.path for image in read_image_folder(small_tree, 0.25).splits["validation"].units
    }
    write_image(small_tree / "cat/deep/new.png")
    after = {image.path for image in read_image_folder(small_tree, 0.25).splits["validation"].units}
    assert before == after - {"cat/deep/new.png"}, "images stay on their side"


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_no_split_is_empty(small_tree: Path, share: float) -> None:
    sizes = {
        s: listing.num_samples for s, listing in read_image_folder(small_tree, share).splits.items()
    }
    assert sorted(sizes.values()) == [1, 39]
    assert list(read_image_folder(small_tree, 0.0).splits) == ["train"]


def test_plan_limits(small_tree: Path) -> None:
    source = read_image_folder(small_tree, 0.0)
    listing = source.splits["train"]
    total = sum(image.sizes[0] for image in listing.units)
    plan = plan_shards(listing, source.classes, PlanSettings(shard_samples=7))
    assert [planned.num_samples for planned in plan.shards] == [7, 7, 7, 7, 7, 5]
    assert [planned.first for planned in plan.shards] == [0, 7, 14, 21, 28, 35]
    limit = total // 3
    by_bytes = plan_shards(listing, source.classes, PlanSettings(shard_bytes=limit))
    assert len(by_bytes.shards) >= 3
    for planned in by_bytes.shards:
        assert sum(taken.unit.sizes[0] for taken in by_bytes.taken(planned)) <= limit
    dealt = np.concatenate([planned.units for planned in by_bytes.shards])
    assert sorted(dealt.tolist()) == list(range(40))
    one_each = plan_shards(listing, source.classes, PlanSettings(shard_bytes=1))
    assert [planned.num_samples for planned in one_each.shards] == [1] * 40
    hashes = {p.plan_hash for p in (plan, by_bytes, one_each)}
    hashes.add(plan_shards(listing, source.classes, PlanSettings(seed=1)).plan_hash)
    hashes.add(plan_shards(listing, (), PlanSettings()).plan_hash)
    hashes.add(plan_shards(listing, source.classes, PlanSettings(), {3: (0,)}).plan_hash)
    assert len(hashes) == 6


def test_finished_corpus_is_reused_and_another_plan_refused(
    small_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert shard(small_tree, out, "--shard-samples", "5") == 0
    first = contents(out)
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    capsys.readouterr()
    assert shard(small_tree, out, "--shard-samples", "5") == 0
    assert capsys.readouterr().out.count("finished before, reused") == 2
    assert stamps == {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert shard(small_tree, out, "--shard-samples", "20") == 3
    assert "--overwrite" in capsys.readouterr().err
    assert contents(out) == first
    assert shard(small_tree, out, "--shard-samples", "20", "--overwrite") == 0
    fresh = tmp_path / "fresh"
    assert shard(small_tree, fresh, "--shard-samples", "20") == 0
    assert contents(out) == contents(fresh), "nothing of the former corpus stays"
    write_image(small_tree / "dog/added.png")
    assert shard(small_tree, out, "--shard-samples", "20") == 3


def test_unfinished_corpus_of_another_plan_is_refused(small_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "out/train/manifest").mkdir(parents=True)
    plan = tmp_path / "out/train/manifest/plan.json"
    for text in ('{"plan_hash": "other"}', "{"):
        plan.write_text(text)
        assert shard(small_tree, tmp_path / "out") == 3


def _spoil(tree: Path) -> dict[str, str]:
    """Bad images of every kind; expected reason by path."""
    write_image(tree / "dog/cut.jpg", 1, (200, 200))
    (tree / "dog/cut.jpg").write_bytes((tree / "dog/cut.jpg").read_bytes()[:4000])
    (tree / "dog/empty.png").write_bytes(b"")
    (tree / "dog/text.jpg").write_bytes(b"<html>not found</html>")
    write_image(tree / "dog/bomb.png", 2, (300, 200))
    write_image(tree / "dog/thin.png", 2, (300, 1))
    for name, sidecar, data in (
        ("caption", "txt", b"\xff\xfe"),
        ("json", "json", b"{"),
        ("float", "json", b'{"a": 1.5}'),
    ):
        write_image(tree / f"dog/bad_{name}.png", 3)
        (tree / f"dog/bad_{name}.{sidecar}").write_bytes(data)
    return {
        "dog/bad_caption.png": "its caption is not UTF-8",
        "dog/bad_float.png": "its attributes are not an object of integers >= 0",
        "dog/bad_json.png": "its attributes are not JSON",
        "dog/bomb.png": "300 x 200 pixels exceed max_pixels = 50000",
        "dog/cut.jpg": "decodes with errors: Premature end of JPEG file",
        "dog/empty.png": "empty file",
        "dog/text.jpg": "does not decode: no image format",
        "dog/thin.png": "300 x 1 pixels: longer than 50 to 1",
    }


def test_bad_images_are_left_out_with_a_reason(small_tree: Path, tmp_path: Path) -> None:
    expected = _spoil(small_tree)
    options = ("--validation-share", "0", "--max-pixels", "50000")
    out = tmp_path / "out"
    assert shard(small_tree, out, *options, "--max-bad-share", "0.5") == 0
    quarantine = json.loads((out / "train/manifest/quarantine.json").read_text())
    found = {item["name"]: item["reason"] for item in quarantine["samples"]}
    assert found.keys() == expected.keys()
    assert all(found[path].startswith(reason) for path, reason in expected.items()), found
    assert quarantine["num_bad"] == 8
    assert load_manifest(open_storage(f"{out}/train")).info.num_samples == 40


def test_too_many_bad_images_stop_it(
    small_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small_tree / "cat/deep/3.JPEG").write_bytes(b"")
    out = tmp_path / "out"
    assert shard(small_tree, out, "--validation-share", "0") == 3
    shown = capsys.readouterr().err
    assert "cat/deep/3.JPEG: empty file" in shown
    assert "--max-bad-share" in shown
    assert len(shown.splitlines()) == 1
    with refused(DataError, out / "train", "manifest/dataset.json", "finished", "gear-dist shard"):
        load_manifest(open_storage(f"{out}/train"))
    assert (out / "train/manifest/quarantine.json").exists()
    write_image(small_tree / "cat/deep/3.JPEG", 3)
    assert shard(small_tree, out, "--validation-share", "0", "--overwrite") == 0


def test_nothing_but_bad_images(tmp_path: Path) -> None:
    (tmp_path / "tree/dog").mkdir(parents=True)
    (tmp_path / "tree/dog/a.jpg").write_bytes(b"")
    assert shard(tmp_path / "tree", tmp_path / "out", "--max-bad-share", "1") == 3


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda tree: shutil.rmtree(tree), "no such"),
        (lambda tree: shutil.rmtree(tree / "dog") or shutil.rmtree(tree / "cat"), "no images"),
        (lambda tree: [p.rename(tree / p.name) for p in tree.glob("dog/*")], None),
    ],
)
def test_sources_that_are_no_image_folder(small_tree: Path, make, word: str | None) -> None:
    make(small_tree)
    if word is None:
        assert read_image_folder(small_tree, 0.1).classes == ("cat",)
        return
    with refused(DataError, small_tree, word, "CLASS/NAME.jpg"):
        read_image_folder(small_tree, 0.1)


@pytest.mark.parametrize("names", [("train", "val"), ("train", "validation"), ("train", "valid")])
def test_split_folders(tmp_path: Path, names: tuple[str, str]) -> None:
    write_image(tmp_path / names[0] / "b/1.png")
    write_image(tmp_path / names[0] / "a/1.png")
    write_image(tmp_path / names[1] / "b/2.png")
    (tmp_path / names[1] / "empty").mkdir()
    (tmp_path / names[0] / "a/notes.doc").write_text("")
    (tmp_path / names[0] / "a/._1.png").write_text("")
    source = read_image_folder(tmp_path, 0.5)
    assert source.classes == ("a", "b")
    assert {s: [i.class_index for i in part.units] for s, part in source.splits.items()} == {
        "train": [0, 1],
        "validation": [1],
    }
    assert any(has_word(note, "1 files") for note in source.notes)


def test_train_folder_alone_is_split(small_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    small_tree.rename(tmp_path / "root/train")
    source = read_image_folder(tmp_path / "root", 0.2)
    assert source.classes == ("cat", "dog")
    assert sum(listing.num_samples for listing in source.splits.values()) == 40
    assert len(source.splits) == 2


def test_vanished_file(small_tree: Path, tmp_path: Path) -> None:
    spec = make_spec(str(small_tree), "folder", SourceOptions(validation_share=0.0))
    source = open_source(spec)
    (small_tree / "dog/7.png").unlink()
    settings = pipeline.CorpusSettings(PlanSettings())
    storage = open_storage(str(tmp_path / "out"))
    with refused(MissingObjectError, small_tree / "dog/7.png"):
        pipeline.make_corpus(storage, source, "train", settings, spec=spec)


def test_dead_workers_are_replaced(
    small_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(items, make_job, pool, workers: int):
        i, planned = next(items)
        yield i, pool.run(make_job(planned))
        raise BrokenProcessPool

    monkeypatch.setattr(task_pool, "_pool_outcomes", dying)
    options = ("--shard-samples", "9", "--validation-share", "0")
    assert shard(small_tree, tmp_path / "out", *options, workers=2) == 5
    assert list((tmp_path / "out/train/shards").iterdir())
    with refused(
        DataError, tmp_path / "out/train", "manifest/dataset.json", "finished", "gear-dist shard"
    ):
        load_manifest(open_storage(f"{tmp_path}/out/train"))
    monkeypatch.undo()
    assert shard(small_tree, tmp_path / "out", *options) == 0
    assert shard(small_tree, tmp_path / "straight", *options) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--shard-bytes", "lots"),
        ("--shard-samples", "0"),
        ("--workers", "0"),
        ("--validation-share", "1.5"),
        ("--max-bad-share", "-1"),
        ("--seed", "-1"),
    ],
)
def test_impossible_settings(
    small_tree: Path,
    tmp_path: Path,
    option: str,
    value: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["shard", str(small_tree), str(tmp_path / "out"), f"{option}={value}"]
    assert data_prep(words) == ConfigError.exit_code
    assert f"{option} {value}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unreachable_destination(
    small_tree: Path, capsys: pytest.CaptureFixture[str], object_store: object
) -> None:
    code = shard(small_tree, "s3://bucket/x", "--endpoint", "http://127.0.0.1:9")
    assert code == DataError.exit_code
    assert "data.endpoint" in capsys.readouterr().err


def test_destination_that_cannot_be_written(small_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert shard(small_tree, tmp_path / "file") == StorageError.exit_code
