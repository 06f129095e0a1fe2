"""`verify`, `repair`, `stats`, `preview`, duplicates: on corpora with planted faults."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gear_data_prep.__main__ import main as data_prep
from gear_data_prep.corpus_tools import duplicates
from gear_data_prep.corpus_tools.stats import measure_corpus
from gear_data_prep.corpus_tools.stats_page import render_page
from gear_data_prep.corpus_tools.verify import VerifySettings, verify_corpus
from gear_dist.data.manifest import load_manifest, load_samples
from gear_dist.storage.open import open_storage
from image_files import contents, encode
from refusals import has_word


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for number in range(40):
        path = tmp_path / f"tree/{'cat' if number % 4 else 'dog'}/{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(number))
        path.with_suffix(".txt").write_text(f"number {number}")
    return tmp_path / "tree"


@pytest.fixture
def corpus(tree: Path, tmp_path: Path) -> Path:
    words = ["--shard-samples", "8", "--validation-share", "0", "--workers", "1"]
    assert data_prep(["shard", str(tree), str(tmp_path / "out"), *words]) == 0
    return tmp_path / "out/train"


def faults(corpus: Path, **settings) -> list[str]:
    found = verify_corpus(open_storage(str(corpus)), VerifySettings(**settings)).faults
    return [fault.key for fault in found]


def _flip(name: str, position: int) -> Callable[[Path], None]:
    def spoil(corpus: Path) -> None:
        data = bytearray((corpus / name).read_bytes())
        data[position] ^= 1
        (corpus / name).write_bytes(data)

    return spoil


def _cut(corpus: Path) -> None:
    path = corpus / "shards/000003.tar"
    path.write_bytes(path.read_bytes()[:-1024])


PLANTED = {
    "flipped": (_flip("shards/000001.tar", 5000), "shards/000001.tar", 1),
    "last byte": (_flip("shards/000001.tar", -1), "shards/000001.tar", 1),
    "cut": (_cut, "shards/000003.tar", 1),
    "missing": (lambda c: (c / "shards/000002.tar").unlink(), "shards/000002.tar", 1),
    "stray": (lambda c: (c / "shards/000009.tar").write_bytes(b"x"), "shards/000009.tar", 0),
    "samples": (
        _flip("manifest/samples-00000.parquet", 60),
        "manifest/samples-00000.parquet",
        5,
    ),
    "shards table": (_flip("manifest/shards.parquet", 60), "manifest/dataset.json", 5),
    "quarantine": (
        lambda c: (c / "manifest/quarantine.json").unlink(),
        "manifest/quarantine.json",
        5,
    ),
    "facts": (_flip("manifest/dataset.json", 40), "manifest/dataset.json", 5),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_faults_are_found_and_repaired(
    corpus: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, key, num_shards = PLANTED[name]
    before = contents(corpus)
    stamps = {path: path.stat().st_mtime_ns for path in corpus.glob("shards/*")}
    spoil(corpus)
    assert key in faults(corpus)
    assert data_prep(["verify", str(corpus)]) == 3
    shown = capsys.readouterr()
    assert key in shown.out
    assert "gear-dist repair" in shown.err
    assert data_prep(["repair", str(corpus), "--workers", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_shards"] == num_shards
    assert contents(corpus) == before
    assert data_prep(["verify", str(corpus), "--decode"]) == 0
    if num_shards < 2:
        touched = [p for p, t in stamps.items() if p.stat().st_mtime_ns != t]
        assert len(touched) <= num_shards, "just the broken shards are made again"


def test_repair_leaves_files_of_others_alone(corpus: Path) -> None:
    strangers = ("shards/readme.txt", "shards/mine/000001.tar", "manifest/notes.json", "x.txt")
    for key in strangers:
        (corpus / key).parent.mkdir(exist_ok=True)
        (corpus / key).write_bytes(b"somebody's")
    assert data_prep(["verify", str(corpus)]) == 0
    (corpus / "shards/000001.tar").write_bytes(b"")
    (corpus / "shards/000009.tar").write_bytes(b"left by a longer corpus")
    assert data_prep(["repair", str(corpus), "--workers", "1"]) == 0
    assert {key: (corpus / key).read_bytes() for key in strangers} == dict.fromkeys(
        strangers, b"somebody's"
    )
    assert not (corpus / "shards/000009.tar").exists()


def test_repair_of_several_and_of_none(corpus: Path) -> None:
    before = contents(corpus)
    assert data_prep(["repair", str(corpus)]) == 0
    for number in (0, 2, 4):
        (corpus / f"shards/00000{number}.tar").write_bytes(b"")
    assert data_prep(["repair", str(corpus), "--workers", "2"]) == 0
    assert contents(corpus) == before


def test_repair_refuses_a_changed_source(
    corpus: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (corpus / "shards/000000.tar").unlink()
    copy = tmp_path / "elsewhere"
    shutil.copytree(tree, copy)
    (tree / "cat/1.jpg").write_bytes(encode(99, size=(80, 80)))
    assert data_prep(["repair", str(corpus)]) == 3
    assert "is not what" in capsys.readouterr().err
    assert data_prep(["repair", str(corpus), "--source", str(copy), "--workers", "1"]) == 0
    assert not faults(corpus)


def test_a_sample_of_the_shards(corpus: Path) -> None:
    _flip("shards/000001.tar", 700)(corpus)
    found = [bool(faults(corpus, samples=1, seed=seed)) for seed in range(12)]
    assert True in found
    assert False in found
    assert faults(corpus, samples=5)


def test_verify_of_an_unfinished_corpus(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (corpus / "manifest/dataset.json").unlink()
    assert data_prep(["verify", str(corpus)]) == 3
    assert "has not finished" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["verify", "stats", "repair"])
def test_the_folder_of_both_splits_is_told_from_a_corpus(
    command: str, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data_prep([command, str(corpus.parent)]) == 3
    assert f"{corpus.parent}/train" in capsys.readouterr().err


def test_decode_finds_what_was_published_without_a_check(tree: Path, tmp_path: Path) -> None:
    data = (tree / "cat/1.jpg").read_bytes()
    (tree / "cat/1.jpg").write_bytes(data[:-200])
    words = ["--check", "header", "--validation-share", "0", "--workers", "1"]
    assert data_prep(["shard", str(tree), str(tmp_path / "out"), *words]) == 0
    assert not faults(tmp_path / "out/train")
    assert len(faults(tmp_path / "out/train", decode=True)) == 1


def test_changed_bytes_of_a_corpus_are_all_found(corpus: Path) -> None:
    """Any one byte of any object: 300 random ones."""
    rng = np.random.default_rng(0)
    objects = sorted(contents(corpus).items())
    sizes = np.array([len(data) for _, data in objects])
    for position in rng.integers(0, sizes.sum(), 300):
        index = int(np.searchsorted(np.cumsum(sizes), position, side="right"))
        name, data = objects[index]
        changed = bytearray(data)
        changed[int(position - sizes[:index].sum())] ^= int(rng.integers(1, 256))
        (corpus / name).write_bytes(changed)
        assert faults(corpus), f"{name} byte {position}"
        (corpus / name).write_bytes(data)
    assert not faults(corpus)


def test_stats(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data_prep(["stats", str(corpus), "--json", "--html", str(tmp_path / "p.html")]) == 0
    node = json.loads(capsys.readouterr().out)
    assert node["classes"] == [["cat", 30], ["dog", 10]]
    assert node["captions"] == [[1, 40]]
    assert (node["num_samples"], node["num_shards"], node["num_duplicates"]) == (40, 5, 0)
    quantiles = dict(map(tuple, node["distributions"]))
    assert quantiles["short side, pixels"] == [48.0] * 7
    page = (tmp_path / "p.html").read_text()
    assert "cat" in page
    assert "data:image/jpeg;base64" in page
    assert "http" not in page.replace("https://www.w3.org", "")
    assert data_prep(["stats", str(corpus)]) == 0
    assert "most and least frequent" in capsys.readouterr().out


def test_names_are_text_on_the_page_of_statistics(corpus: Path) -> None:
    evil = '"><script>alert(1)</script>'
    storage = open_storage(str(corpus))
    stats = measure_corpus(storage)._replace(address=evil, classes=((evil, 1),))
    page = render_page(storage, stats)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 3, "the title, the heading and the class"


def test_preview(corpus: Path, tmp_path: Path) -> None:
    words = ["--out", str(tmp_path / "sheet.png"), "--count", "10", "--side", "40"]
    assert data_prep(["preview", str(corpus), *words]) == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width >= 8 * 40
        assert np.asarray(sheet.convert("RGB")).std() > 20
    assert data_prep(["preview", str(corpus), "--out", str(tmp_path / "x.png"), "--count=0"]) == 2


@pytest.mark.parametrize("as_tars", [False, True])
def test_duplicates_are_removed_by_a_new_plan(tree: Path, tmp_path: Path, as_tars: bool) -> None:
    for number in range(6):
        (tree / f"dog/copy{number}.jpg").write_bytes(encode(number % 3))
    source = tree
    if as_tars:
        words = ["--validation-share", "0", "--workers", "1", "--shard-samples", "20"]
        assert data_prep(["shard", str(tree), str(tmp_path / "tars"), *words]) == 0
        source = tmp_path / "tars/train"
    words = ["--validation-share", "0", "--workers", "1", "--shard-samples", "10"]
    assert data_prep(["shard", str(source), str(tmp_path / "a"), *words]) == 0
    again = [*words, "--without-duplicates-of", str(tmp_path / "a")]
    assert data_prep(["shard", str(source), str(tmp_path / "b"), *again]) == 0
    before, after = (
        load_samples(open_storage(str(tmp_path / name / "train")))["xxh3"].to_pylist()
        for name in "ab"
    )
    assert (len(before), len(after), len(set(before))) == (46, 40, 40)
    assert set(after) == set(before)
    plans = {load_manifest(open_storage(str(tmp_path / n / "train"))).info.plan_hash for n in "ab"}
    assert len(plans) == 2
    (tmp_path / "b/train/shards/000001.tar").unlink()
    assert data_prep(["repair", str(tmp_path / "b/train"), "--workers", "1"]) == 0


def test_images_of_both_splits_stay_in_validation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(12):
        for split in ("train", "val") if number < 4 else ("train",):
            path = tmp_path / f"tree/{split}/dog/{split}{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(number))
    (tmp_path / "tree/train/dog/again.jpg").write_bytes(encode(7))
    words = ["shard", str(tmp_path / "tree"), str(tmp_path / "a"), "--workers", "1"]
    assert data_prep(words) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    assert has_word(line, "4")
    assert has_word(line, "--without-duplicates-of")
    for split, counts in (("train", "1 duplicates, 4"), ("validation", "0 duplicates, 4")):
        assert data_prep(["stats", str(tmp_path / "a" / split)]) == 0
        assert f"{counts} in the other split" in capsys.readouterr().out
    again = ["--without-duplicates-of", str(tmp_path / "a")]
    assert data_prep([*words[:2], str(tmp_path / "b"), "--workers", "1", *again]) == 0
    assert "WARNING" not in capsys.readouterr().out
    hashes = [
        load_samples(open_storage(str(tmp_path / "b" / split)))["xxh3"].to_pylist()
        for split in ("train", "validation")
    ]
    assert [len(found) for found in hashes] == [8, 4]
    assert len({*hashes[0], *hashes[1]}) == 12


def test_images_of_both_splits_are_not_searched_for_among_too_many(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(duplicates, "MAX_COMPARED", 39)
    assert data_prep(["shard", str(tree), str(tmp_path / "out"), "--workers", "1"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    assert has_word(line, "39")
    assert "stats" in line


def test_duplicates_of_another_source(tree: Path, tmp_path: Path, corpus: Path) -> None:
    (tree / "dog/more.jpg").write_bytes(encode(7))
    words = ["shard", str(tree), str(tmp_path / "b"), "--validation-share", "0", "--workers", "1"]
    assert data_prep([*words, "--without-duplicates-of", str(tmp_path / "out")]) == 3


def test_json_summary(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["shard", str(tree), str(tmp_path / "out"), "--workers", "1", "--json"]
    assert data_prep(words) == 0
    node = json.loads(capsys.readouterr().out)
    assert {split: part["reused"] for split, part in node["splits"].items()} == {
        "train": False,
        "validation": False,
    }
    assert sum(part["samples"] for part in node["splits"].values()) == 40
    assert data_prep(words) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["train"]["reused"]


def test_resized_corpus_keeps_originals(tree: Path, tmp_path: Path) -> None:
    words = ["--short-side", "24", "--keep-original", "--workers", "1", "--validation-share=0"]
    assert data_prep(["shard", str(tree), str(tmp_path / "out"), *words]) == 0
    storage = open_storage(str(tmp_path / "out/train"))
    assert set(load_samples(storage)["height"].to_pylist()) == {24}
    import webdataset

    samples = list(webdataset.WebDataset(f"{tmp_path}/out/train/shards/000000.tar",
                                         shardshuffle=False))  # fmt: skip
    assert {s["original.jpg"] for s in samples} == {encode(number) for number in range(40)}
