"""Types of captions, licences and attribution: from a source into shards, manifest and tools."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from gear_data_prep.__main__ import main as data_prep
from gear_data_prep.samples import BadSampleError, match_types, parse_sidecar
from gear_data_prep.sharding.plan import PlanSettings
from gear_dist.cli.main import main, parse
from gear_dist.data.manifest import load_manifest, load_samples
from gear_dist.data.origins import iterate_origins, origins_keys
from gear_dist.data.sample_filters import SampleFilters
from gear_dist.data.shard_reader import TypedCaption, read_shard
from gear_dist.errors import ConfigError, DataError
from gear_dist.inference.prompt_files import read_prompt_file
from gear_dist.storage.open import open_storage
from image_files import contents, encode, tar_bytes
from refusals import refused

BY = "https://creativecommons.org/licenses/by/4.0/"
GPIC = [
    {"caption": "a red boat", "caption_type": "short", "split": "nano", "license": "CC-BY-4.0",
     "license_url": BY, "attribution": "Ada, \"Boats\""},
    {"captions": ["boat, red", " ", "A red boat lies at the quay."],
     "caption_types": ["tag", "short", "long"], "split": "lite", "license": "CC0-1.0"},
    {"caption": "a tree", "caption_type": "medium", "split": "full", "license": "CC-BY-NC-2.0",
     "attribution": "Bo\nand Cy"},
    {"caption": "untold"},
]  # fmt: skip


@pytest.fixture
def gpic(tmp_path: Path) -> Path:
    """Stock tars: KEY.json before KEY.jpg."""
    source = tmp_path / "gpic"
    source.mkdir()
    members = {}
    for number, node in enumerate(GPIC):
        members[f"{number:04d}.json"] = json.dumps(node).encode()
        members[f"{number:04d}.jpg"] = encode(number, size=(32 + 8 * number, 64))
    (source / "00.tar").write_bytes(tar_bytes(members))
    return source


def shard(source: Path, out: Path, *options: str) -> None:
    own = ("--validation-share", "0", "--workers", "1", "--block-samples", "1")
    assert data_prep(["shard", str(source), str(out), *own, *options]) == 0


def nodes_of(folder: Path) -> dict[bytes, dict]:
    urls = sorted(str(path) for path in (folder / "shards").iterdir())
    found = webdataset.WebDataset(urls, shardshuffle=False)
    return {s["jpg"]: json.loads(s.get("json", b"{}")) for s in found}


def test_gpic_keeps_types_licences_and_attribution(gpic: Path, tmp_path: Path) -> None:
    shard(gpic, tmp_path / "out")
    nodes = nodes_of(tmp_path / "out/train")
    images = [encode(number, size=(32 + 8 * number, 64)) for number in range(4)]
    assert nodes[images[0]] == {key: GPIC[0][key] for key in GPIC[0] if key != "caption"}
    assert nodes[images[1]] == {
        "captions": ["boat, red", "A red boat lies at the quay."],
        "caption_types": ["tag", "long"],
        "split": "lite",
        "license": "CC0-1.0",
    }, "a blank caption goes with its type"
    assert nodes[images[3]] == {}
    storage = open_storage(str(tmp_path / "out/train"))
    info, shards = load_manifest(storage)
    assert info.licenses == {"CC-BY-4.0": 1, "CC0-1.0": 1, "CC-BY-NC-2.0": 1}
    assert info.subsets == {"nano": 1, "lite": 1, "full": 1}
    assert info.caption_types == {"short": 1, "tag": 1, "long": 1, "medium": 1}
    (table,) = iterate_origins(storage, info)
    assert table["key"].to_pylist() == load_samples(storage)["key"].to_pylist()
    rows = {row["license"]: row for row in table.to_pylist()}
    assert rows["CC0-1.0"]["caption_types"] == "tag,long"
    assert rows["CC-BY-NC-2.0"]["attribution"] == "Bo and Cy"
    read = read_shard(storage, shards[0])
    typed = {read.image(row): read.typed_captions(row) for row in range(4)}
    assert typed[images[0]] == (TypedCaption("short", "a red boat"),)
    assert typed[images[1]][1] == TypedCaption("long", "A red boat lies at the quay.")


def test_shards_of_ours_are_a_source_that_loses_nothing(gpic: Path, tmp_path: Path) -> None:
    shard(gpic, tmp_path / "one")
    shard(tmp_path / "one/train/shards", tmp_path / "two")
    assert nodes_of(tmp_path / "two/train") == nodes_of(tmp_path / "one/train")


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (("--subsets", "NANO,lite"), {0, 1}),
        (("--licenses", "cc0*,cc-by-4.0"), {0, 1}),
        (("--caption-types", "long,medium"), {1, 2}),
        (("--min-side", "45"), {2, 3}),
        (("--min-side", "45", "--licenses", "*nc*"), {2}),
    ],
)
def test_filters(
    gpic: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    left: set[int],
) -> None:
    shard(gpic, tmp_path / "out", *options)
    images = [encode(number, size=(32 + 8 * number, 64)) for number in range(4)]
    nodes = nodes_of(tmp_path / "out/train")
    assert {images.index(image) for image in nodes} == left
    if "--caption-types" in options:
        assert nodes[images[1]].get("caption_type") == "long", "other types are not kept"
    report = json.loads((tmp_path / "out/train/manifest/quarantine.json").read_text())
    assert (report["num_bad"], sum(report["skipped"].values())) == (0, 4 - len(left))
    before = contents(tmp_path / "out")
    capsys.readouterr()
    shard(gpic, tmp_path / "out", *options, "--json")
    told = json.loads(capsys.readouterr().out)["splits"]["train"]
    assert sum(told["licenses"].values()) == len(left - {3})
    assert contents(tmp_path / "out") == before


def test_filters_that_leave_nothing_or_cannot_work(
    gpic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with refused(DataError, "--licenses", "loosen", "CC-BY-4.0"):
        data_prep_raising(gpic, tmp_path / "out", "--licenses", "mit")
    tree = tmp_path / "tree/class"
    tree.mkdir(parents=True)
    (tree / "a.jpg").write_bytes(encode(1))
    with refused(ConfigError, "--subsets", "nano", "folder"):
        data_prep_raising(tree.parent, tmp_path / "out2", "--subsets", "nano")
    for wrong in (
        ("--subsets", "a,,b"),
        ("--min-side", "-1"),
        ("--licenses", ""),
        ("--max-bytes", "9" * 5000),
        ("--max-bytes", "\u00b2M"),
    ):
        assert main(["shard", str(gpic), str(tmp_path / "out3"), *wrong]) == 2
        assert wrong[0] in capsys.readouterr().err


def data_prep_raising(source: Path, out: Path, *options: str) -> None:
    args = parse(["shard", str(source), str(out), "--workers", "1", *options])
    args.run(args)


def test_parquet_columns(tmp_path: Path) -> None:
    """COCO's numbered licences, several typed captions, and a file without any."""
    source = tmp_path / "source"
    source.mkdir()
    first = {
        "image": [{"bytes": encode(1), "path": "1.jpg"}, {"bytes": encode(2), "path": "2.jpg"}],
        "captions": [["a", "b"], ["c"]],
        "caption_types": [["tag", "long"], ["short"]],
        "license": [4, None],
        "split": ["nano", "full"],
    }
    pq.write_table(pa.table(first), source / "train-0.parquet")
    second = {**first, "license": [None, None]}
    second["image"] = [{"bytes": encode(3), "path": "3.jpg"}, {"bytes": encode(4), "path": None}]
    pq.write_table(pa.table(second), source / "train-1.parquet")
    shard(source, tmp_path / "out")
    nodes = nodes_of(tmp_path / "out/train")
    assert nodes[encode(1)] == {
        "captions": ["a", "b"], "caption_types": ["tag", "long"], "license": "4", "split": "nano",
    }  # fmt: skip
    assert nodes[encode(4)] == {"caption_type": "short", "split": "full"}
    pq.write_table(pa.table(first).drop_columns(["license"]), source / "train-1.parquet")
    with refused(DataError, "train-1.parquet", "license"):
        data_prep_raising(source, tmp_path / "out2")
    (source / "train-0.parquet").unlink()
    with refused(ConfigError, "--licenses", "4", "column"):
        data_prep_raising(source, tmp_path / "out2", "--licenses", "4")


def test_types_that_do_not_fit_are_bad_samples() -> None:
    assert match_types(("short",), 3) == ("short",) * 3
    assert match_types((), 3) == ()
    with pytest.raises(BadSampleError, match="3 captions and 2 types"):
        match_types(("a", "b"), 3)
    half = parse_sidecar(b'{"license": "a\\ud800b", "split": 3}', strict=False, origins=True)
    assert half.origin.license == "a?b"
    assert (half.origin.split, half.attributes) == ("", {"split": 3})


def test_plans_of_earlier_versions_keep_their_hashes() -> None:
    old = PlanSettings()
    assert not {"origins", "filters"} & old.dump().keys()
    new = PlanSettings(origins=True, filters=SampleFilters(licenses=("cc0*",), min_side=3))
    assert PlanSettings.load(json.loads(json.dumps(new.dump()))) == new
    assert PlanSettings.load(old.dump()) == old


def test_a_corpus_without_origins_has_no_table(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "0.tar").write_bytes(tar_bytes({"a.jpg": encode(1), "a.txt": b"one"}))
    shard(source, tmp_path / "out")
    info = load_manifest(open_storage(str(tmp_path / "out/train"))).info
    assert (origins_keys(info), info.licenses) == ([], {})


def test_verify_and_repair_know_the_table(gpic: Path, tmp_path: Path) -> None:
    shard(gpic, tmp_path / "out")
    corpus = tmp_path / "out/train"
    before = contents(corpus)
    (corpus / "manifest/origins-00000.parquet").write_bytes(b"damaged")
    assert data_prep(["verify", str(corpus)]) == 3
    assert data_prep(["repair", str(corpus), "--workers", "1"]) == 0
    assert contents(corpus) == before


def test_statistics_sheets_and_the_attribution_file(
    gpic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard(gpic, tmp_path / "out")
    corpus, page, table = tmp_path / "out/train", tmp_path / "page.html", tmp_path / "by.csv"
    capsys.readouterr()
    options = ("--json", "--html", str(page), "--attribution", str(table))
    assert data_prep(["stats", str(corpus), *options]) == 0
    stats = json.loads(capsys.readouterr().out)
    assert ["not stated", 1] in stats["licenses"]
    assert stats["subsets"] == [["full", 1], ["lite", 1], ["nano", 1]]
    assert "CC-BY-NC-2.0" in page.read_text()
    assert data_prep(["stats", str(corpus)]) == 0
    assert "CC-BY-NC-2.0" in capsys.readouterr().out
    rows = list(csv.DictReader(table.open(newline="")))
    assert {row["attribution"] for row in rows} == {'Ada, "Boats"', "", "Bo and Cy"}
    assert data_prep(["preview", str(corpus), "--out", str(tmp_path / "sheet.png")]) == 0
    lines = Image.open(tmp_path / "sheet.png").info["Attribution"].splitlines()
    assert len(lines) == 3
    assert any(line.endswith(f'; CC-BY-4.0; {BY}; Ada, "Boats"') for line in lines)


def test_no_attribution_file_of_a_corpus_that_states_none(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "0.tar").write_bytes(tar_bytes({"a.jpg": encode(1), "a.txt": b"one"}))
    shard(source, tmp_path / "out")
    table = tmp_path / "by.csv"
    args = parse(["stats", str(tmp_path / "out/train"), "--attribution", str(table)])
    with refused(DataError, "--attribution", table, tmp_path / "out/train"):
        args.run(args)
    assert not table.exists()


def test_reference_captions_are_prompts(gpic: Path, tmp_path: Path) -> None:
    shard(gpic, tmp_path / "out")
    prompts = tmp_path / "prompts.txt"
    assert data_prep(["stats", str(tmp_path / "out/train"), "--prompts", str(prompts)]) == 0
    assert sorted(read_prompt_file(prompts, most=9)) == [
        "a red boat", "a tree", "boat, red", "untold",
    ]  # fmt: skip
    source = tmp_path / "bare"
    source.mkdir()
    (source / "0.tar").write_bytes(tar_bytes({"a.jpg": encode(1), "a.cls": b"0"}))
    shard(source, tmp_path / "bare-out")
    args = parse(["stats", str(tmp_path / "bare-out/train"), "--prompts", str(prompts)])
    with refused(DataError, "--prompts", prompts, "captions"):
        args.run(args)
