"""Tables of URLs as they are found: columns, classes, broken lines, and tables that change."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from gear_data_prep.__main__ import main as data_prep
from gear_data_prep.sources import fetch_table
from gear_dist.data.manifest import load_manifest
from gear_dist.storage.open import open_storage
from image_files import encode
from web_site import Site, serve_site

OPTIONS = ("--kind", "urls", "--allow-private", "--rate", "0", "--validation-share", "0",
           "--workers", "1", "--attempts", "1")  # fmt: skip


@pytest.fixture
def site() -> Iterator[Site]:
    with serve_site() as site:
        yield site


def write_csv(path: Path, header: list[str], rows: list[list[object]]) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


def shard(table: Path, out: Path, *words: str) -> int:
    return data_prep(["shard", str(table), str(out), *OPTIONS, *words])


def samples(out: Path, *kinds: str) -> list[Any]:
    """What the shards hold of each image, in the order of the images' numbers; None: nothing."""
    urls = sorted(str(path) for path in (out / "train/shards").iterdir())
    found = {s["jpg"]: s for s in webdataset.WebDataset(urls, shardshuffle=False)}
    ordered = [found[encode(k)] for k in range(100) if encode(k) in found]
    return [
        tuple(s[kind].decode() if kind in s else None for kind in kinds) if len(kinds) > 1
        else s[kinds[0]].decode() if kinds[0] in s else None
        for s in ordered
    ]  # fmt: skip


def classes(out: Path) -> tuple[str, ...]:
    return load_manifest(open_storage(str(out / "train"))).info.classes


@pytest.mark.parametrize("header", [["URL", "TEXT"], ["Url", "Caption"], [" url", "text "]])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_columns_are_found_in_any_case(
    site: Site, tmp_path: Path, header: list[str], kind: str
) -> None:
    if kind == "parquet":
        header = [name.strip() for name in header]
    rows: list[list[object]] = [[f"{site.url}/image/{k}", f"a cat {k}"] for k in range(4)]
    table = tmp_path / f"t.{kind}"
    if kind == "csv":
        write_csv(table, header, rows)
    else:
        pq.write_table(pa.table(dict(zip(header, zip(*rows, strict=True), strict=True))), table)
    assert shard(table, tmp_path / "out") == 0
    assert samples(tmp_path / "out", "txt") == [f"a cat {k}" for k in range(4)]


def test_columns_that_differ_in_case_only(site: Site, tmp_path: Path) -> None:
    rows: list[list[object]] = [[f"{site.url}/image/1", "large", "small"]]
    write_csv(tmp_path / "t.csv", ["url", "TEXT", "text"], rows)
    assert shard(tmp_path / "t.csv", tmp_path / "a") == 0
    assert shard(tmp_path / "t.csv", tmp_path / "b", "--caption-column", "TEXT") == 0
    assert samples(tmp_path / "a", "txt") == ["small"]
    assert samples(tmp_path / "b", "txt") == ["large"]


def test_a_table_without_captions_says_so(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(tmp_path / "t.csv", ["URL", "WORDS"], [[f"{site.url}/image/1", "a cat"]])
    assert shard(tmp_path / "t.csv", tmp_path / "out") == 0
    assert "no caption column among URL, WORDS" in capsys.readouterr().out
    assert shard(tmp_path / "t.csv", tmp_path / "out", "--json", "--caption-column", "words",
                 "--overwrite") == 0  # fmt: skip
    summary = json.loads(capsys.readouterr().out)
    assert summary["fetch"]["num_reused"] == 1
    assert "WORDS" in summary["fetch"]["lines"][0]
    assert samples(tmp_path / "out", "txt") == ["a cat"]


def test_names_of_columns_that_are_not_there(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(tmp_path / "t.csv", ["url", "caption"], [[f"{site.url}/image/1", "a cat"]])
    write_csv(tmp_path / "n.csv", [f"{site.url}/image/1", "a cat"], [])
    assert shard(tmp_path / "t.csv", tmp_path / "out", "--caption-column", "title") == 2
    assert "title" in capsys.readouterr().err
    assert shard(tmp_path / "n.csv", tmp_path / "out") == 2
    assert "--url-column" in capsys.readouterr().err
    assert not site.handler.seen


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_captions_and_classes_are_those_of_the_table_as_it_is(
    site: Site, tmp_path: Path, kind: str
) -> None:
    def write(captions: list[str], labels: list[int]) -> None:
        urls = [f"{site.url}/image/{k}" for k in range(3)]
        if kind == "csv":
            rows = [list(row) for row in zip(urls, captions, labels, strict=True)]
            write_csv(table, ["url", "caption", "label"], rows)
        else:
            pq.write_table(pa.table({"url": urls, "caption": captions, "label": labels}), table)

    table, out = tmp_path / f"t.{kind}", tmp_path / "out"
    write(["wrong", "b", "c"], [0, 0, 0])
    assert shard(table, out) == 0
    write(["right", "b", "c"], [0, 1, 2])
    assert shard(table, out) == 3, "another corpus than the one that is there"
    assert shard(table, out, "--overwrite") == 0
    assert samples(out, "txt", "cls") == [("right", "0"), ("b", "1"), ("c", "2")]
    assert site.handler.seen.total() == 3, "images are fetched once"
    assert shard(table, out) == 0


def test_corrections_move_nothing_to_the_other_split(site: Site, tmp_path: Path) -> None:
    paths = [f"image/{k}" for k in range(30)] + ["flaky/30", "flaky/31"]
    words = ("--validation-share", "0.3", "--block-samples", "2", "--max-bad-share", "0.1")
    held = []
    for captions, more in (("wrong", ()), ("right", ("--refetch", "--overwrite"))):
        rows: list[list[object]] = [[f"{site.url}/{path}", captions] for path in paths]
        write_csv(tmp_path / "t.csv", ["url", "caption"], rows)
        assert shard(tmp_path / "t.csv", tmp_path / "out", *words, *more) == 0
        tars = sorted(str(path) for path in (tmp_path / "out/validation/shards").iterdir())
        held.append({s["jpg"] for s in webdataset.WebDataset(tars, shardshuffle=False)})
    new = {encode(30), encode(31)}
    assert held[0]
    assert held[0] == held[1] - new


def test_corpora_of_two_caption_columns_share_what_was_fetched(site: Site, tmp_path: Path) -> None:
    """Either is repaired from its own column, whichever was made last."""
    rows: list[list[object]] = [[f"{site.url}/image/{k}", f"cat {k}", f"Katze {k}"] for k in (0, 1)]
    write_csv(tmp_path / "t.csv", ["url", "en", "de"], rows)
    fetched = ("--fetched", str(tmp_path / "fetched"))
    for name in ("en", "de"):
        words = ("--caption-column", name)
        assert shard(tmp_path / "t.csv", tmp_path / name, *fetched, *words) == 0
    (tmp_path / "en/train/shards/000000.tar").unlink()
    assert data_prep(["repair", str(tmp_path / "en/train")]) == 0
    assert samples(tmp_path / "en", "txt") == ["cat 0", "cat 1"]
    assert samples(tmp_path / "de", "txt") == ["Katze 0", "Katze 1"]
    assert site.handler.seen.total() == 2


def test_tables_that_share_images_keep_their_own_captions(site: Site, tmp_path: Path) -> None:
    """Also where one is sharded between another's fetch and its sharding, or its repair."""
    fetched = str(tmp_path / "fetched")
    for word in ("cat", "dog"):
        rows: list[list[object]] = [[f"{site.url}/image/{k}", f"a {word} {k}"] for k in range(4)]
        write_csv(tmp_path / f"{word}.csv", ["url", "caption"], rows)
        assert shard(tmp_path / f"{word}.csv", tmp_path / word, "--fetched", fetched) == 0
    assert site.handler.seen["/image/1"] == 1, "fetched once"
    broken = tmp_path / "cat/train/shards/000000.tar"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-2048])
    assert data_prep(["repair", str(tmp_path / "cat/train"), "--workers", "1"]) == 0
    assert broken.read_bytes() == whole
    assert samples(tmp_path / "cat", "txt") == [f"a cat {k}" for k in range(4)]


def test_rows_that_come_and_go(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only rows that are new are fetched; those that are gone are in no shard."""
    monkeypatch.setattr(fetch_table, "CHUNK_ROWS", 4)
    table, out = tmp_path / "t.csv", tmp_path / "out"

    def rows(*numbers: int) -> list[list[object]]:
        return [[f"{site.url}/image/{k}", f"cat {k}"] for k in numbers]

    write_csv(table, ["url", "caption"], rows(*range(9)))
    assert shard(table, out) == 0
    site.handler.seen.clear()
    write_csv(table, ["url", "caption"], rows(0, 1, 20, 3, 4, 5))
    assert shard(table, out, "--overwrite") == 0
    assert samples(out, "txt") == [f"cat {k}" for k in (0, 1, 3, 4, 5, 20)]
    write_csv(table, ["url", "caption"], rows(*range(9)))
    assert shard(table, out, "--overwrite") == 0
    assert samples(out, "txt") == [f"cat {k}" for k in range(9)]
    assert dict(site.handler.seen) == {"/image/20": 1}


@pytest.mark.parametrize("order", [[*range(8, -1, -1)], [*range(20, 24), *range(9)]])
def test_images_are_found_wherever_their_rows_are(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: list[int]
) -> None:
    """Also where the web has forgotten them, and no row of the first chunk was known."""
    monkeypatch.setattr(fetch_table, "CHUNK_ROWS", 4)
    table, out = tmp_path / "t.csv", tmp_path / "out"
    write_csv(table, ["url"], [[f"{site.url}/image/{k}"] for k in range(9)])
    assert shard(table, out) == 0
    site.handler.seen.clear()
    write_csv(table, ["url"], [[f"{site.url}/image/{k}"] for k in order])
    assert shard(table, out, "--overwrite") == 0
    assert load_manifest(open_storage(str(out / "train"))).info.num_samples == len(order)
    assert dict(site.handler.seen) == {f"/image/{k}": 1 for k in order if k >= 20}


@pytest.mark.parametrize(
    ("labels", "names", "wanted"),
    [
        (["dog", "cat", "", "dog"], ("cat", "dog"), ["1", "0", None, "1"]),
        (["2", "0", "", "1"], ("0", "1", "2"), ["2", "0", None, "1"]),
        (["1.0", "0.0", "", "1.0"], ("0", "1"), ["1", "0", None, "1"]),
    ],
)
def test_classes_are_numbers_or_names(
    site: Site, tmp_path: Path, labels: list[str], names: tuple[str, ...], wanted: list[str]
) -> None:
    rows: list[list[object]] = [[f"{site.url}/image/{k}", label] for k, label in enumerate(labels)]
    write_csv(tmp_path / "t.csv", ["url", "Animal"], rows)
    assert shard(tmp_path / "t.csv", tmp_path / "out", "--class-column", "animal") == 0
    assert classes(tmp_path / "out") == names
    assert samples(tmp_path / "out", "cls") == wanted


def test_class_names_from_a_file_decide_the_order(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ("cat", "dog")
    rows: list[list[object]] = [[f"{site.url}/image/{k}", labels[k]] for k in (0, 1)]
    write_csv(tmp_path / "t.csv", ["url", "label"], rows)
    (tmp_path / "names.txt").write_text("dog\ncat\n")
    assert shard(tmp_path / "t.csv", tmp_path / "a", "--classes", str(tmp_path / "names.txt")) == 0
    assert samples(tmp_path / "a", "cls") == ["1", "0"]
    (tmp_path / "names.txt").write_text("dog\nbird\n")
    words = ("--fetched", str(tmp_path / "a/fetched"), "--classes", str(tmp_path / "names.txt"))
    assert shard(tmp_path / "t.csv", tmp_path / "b", *words) == 3
    assert "cat" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_captions_that_look_like_numbers(site: Site, tmp_path: Path, kind: str) -> None:
    """And a column that nobody uses, whose type changes after a megabyte."""
    captions = ["2024", "007", "1e5", "true", "NULL", "nan"]
    urls = [f"{site.url}/image/{k}" for k in range(6)]
    filler = ["1" * 300_000] * 5 + ["x"]
    table = tmp_path / f"t.{kind}"
    if kind == "parquet":
        numbers = [2024, 7, 100000, 1, 0, 5]
        captions = [str(number) for number in numbers]
        pq.write_table(pa.table({"url": urls, "caption": numbers, "size": filler}), table)
    else:
        lines = zip(["url", *urls], ["size", *(f[:100_000] for f in filler)],
                    ["caption", *captions], strict=True)  # fmt: skip
        table.write_text("\n".join(("\t" if kind == "tsv" else ",").join(line) for line in lines))
    assert shard(table, tmp_path / "out") == 0
    assert samples(tmp_path / "out", "txt") == captions


def test_lines_with_another_number_of_fields(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A comma that nobody quoted shifts the columns: that row is left out, and counts."""
    lines = [f"{site.url}/image/0,a cat", f"{site.url}/image/1,a cat, sitting", "",
             f'{site.url}/image/2,"a dog, lying"', f"{site.url}/image/3"]  # fmt: skip
    (tmp_path / "t.csv").write_text("\ufeffurl,caption\r\n" + "\r\n".join(lines) + "\r\n")
    assert shard(tmp_path / "t.csv", tmp_path / "out", "--max-bad-share", "0.4") == 3
    assert shard(tmp_path / "t.csv", tmp_path / "out", "--max-bad-share", "0.5") == 0
    assert samples(tmp_path / "out", "txt") == ["a cat", "a dog, lying"]
    assert "fields" in capsys.readouterr().err


@pytest.mark.parametrize("size", [10, 10_000])
def test_a_quote_that_is_never_closed_is_an_error(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    """Whether the file's end or a field's greatest length ends it."""
    lines = [f"{site.url}/image/{k},a cat" for k in range(size)]
    lines[3] = f'{site.url}/image/3,"a cat'
    (tmp_path / "t.csv").write_text("\n".join(["url,caption", *lines, ""]))
    assert shard(tmp_path / "t.csv", tmp_path / "out", "--max-bad-share", "1") == 3
    assert "t.csv:5:" in capsys.readouterr().err


@pytest.mark.parametrize("end", ["", "\n"])
def test_rows_within_quotes_are_counted(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], end: str
) -> None:
    """Line breaks in captions alone are nothing odd."""
    lines = [f'{site.url}/image/{k},"a cat\non a mat"' for k in range(6)]
    (tmp_path / "t.csv").write_text("\n".join(["url,caption", *lines]) + end)
    assert shard(tmp_path / "t.csv", tmp_path / "a") == 0
    assert "WARNING: t.csv" not in capsys.readouterr().out
    assert samples(tmp_path / "a", "txt") == ["a cat\non a mat"] * 6
    lines = [f"{site.url}/image/{k},a cat" for k in range(6)]
    lines[1], lines[4] = f'{site.url}/image/1,"a cat', lines[4] + '"'
    (tmp_path / "t.csv").write_text("\n".join(["url,caption", *lines]) + end)
    assert shard(tmp_path / "t.csv", tmp_path / "b") == 0
    assert "WARNING: t.csv: 3 lines" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"url,caption\n", "no rows"),
        (b"", "is empty"),
        ("url,caption\nhttp://a,b\n".encode("utf-16"), "UTF-16"),
        ("url,caption\nhttp://a,b\n".encode("utf-16-le"), "UTF-16"),
        (b"url;caption\nhttp://a;b\n", "semicolons"),
    ],
)
def test_files_that_are_no_tables_say_what_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes, word: str
) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    assert shard(tmp_path / "t.csv", tmp_path / "out") == 3
    error = capsys.readouterr().err
    assert word in error
    assert "t.csv" in error


def test_text_that_is_not_utf8_is_its_rows_fault(site: Site, tmp_path: Path) -> None:
    lines = [f"{site.url}/image/{k},cat {k}".encode() for k in range(3)]
    lines[1] += b"\xff"
    (tmp_path / "t.csv").write_bytes(b"url,caption\n" + b"\n".join(lines))
    assert shard(tmp_path / "t.csv", tmp_path / "out", "--policy", "bad-caption=skip") == 0
    assert samples(tmp_path / "out", "txt") == ["cat 0", "cat 2"]


def test_rows_that_were_not_fetched_count(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Together with bad samples, and over the whole table: a small split has more by chance."""
    paths = [f"image/{k}" for k in range(16)] + ["gone/1", "gone/2", "gone/3", "half/4"]
    rows: list[list[object]] = [[f"{site.url}/{path}"] for path in paths]
    write_csv(tmp_path / "t.csv", ["url"], rows)
    words = ("--fetched", str(tmp_path / "f"), "--validation-share", "0.3", "--block-samples", "2")
    assert shard(tmp_path / "t.csv", tmp_path / "a", *words, "--max-bad-share", "0.1") == 3
    error = capsys.readouterr().err
    assert "--max-bad-share" in error
    assert "--refetch" in error
    assert "HTTP 404" in error
    assert not (tmp_path / "a/train").exists()
    assert shard(tmp_path / "t.csv", tmp_path / "a", *words, "--max-bad-share", "0.2") == 0
    assert (tmp_path / "a/validation/manifest/dataset.json").exists()
    quarantine = ("--policy", "not-fetched=quarantine", "--max-bad-share", "0.2")
    assert shard(tmp_path / "t.csv", tmp_path / "b", *words, *quarantine) == 0


def test_bad_images_and_missing_ones_add_up(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [f"image/{k}" for k in range(16)] + ["gone/1", "gone/2", "text/1", "text/2"]
    write_csv(tmp_path / "t.csv", ["url"], [[f"{site.url}/{path}"] for path in paths])
    words = ("--fetched", str(tmp_path / "f"))
    assert shard(tmp_path / "t.csv", tmp_path / "a", *words, "--max-bad-share", "0.15") == 3
    assert "--max-bad-share" in capsys.readouterr().err
    assert shard(tmp_path / "t.csv", tmp_path / "b", *words, "--max-bad-share", "0.2") == 0


def test_a_table_none_of_whose_first_rows_comes_is_given_up(
    site: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before the whole of it was asked for in vain."""
    monkeypatch.setattr(fetch_table, "CHUNK_ROWS", 5)
    rows: list[list[object]] = [[f"{site.url}/gone/{k}"] for k in range(500)]
    rows.append([f"{site.url}/image/1"])
    write_csv(tmp_path / "t.csv", ["url"], rows)
    assert shard(tmp_path / "t.csv", tmp_path / "out", "--max-bad-share", "0.999") == 3
    assert "--max-bad-share" in capsys.readouterr().err
    assert site.handler.seen.total() < 500
    assert shard(tmp_path / "t.csv", tmp_path / "out", "--max-bad-share", "1") == 0
    assert samples(tmp_path / "out", "txt") == [None]


def test_passwords_in_addresses_go_nowhere(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    urls = [site.url.replace("//", "//me:secret@") + "/image/0", "ftp://me:secret@h/a.jpg",
            "me:secret@h/a.jpg", "http://me:sec/ret:secret@h/a.jpg",
            f"{site.url}/image/1"]  # fmt: skip
    write_csv(tmp_path / "t.csv", ["url"], [[url] for url in urls])
    words = ("--max-bad-share", "0.8", "--policy", "not-fetched=quarantine", "--json")
    assert shard(tmp_path / "t.csv", tmp_path / "out", "--max-bad-share", "0") == 3
    assert shard(tmp_path / "t.csv", tmp_path / "out", *words) == 0
    texts = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    printed = capsys.readouterr()
    assert not any(b"secret" in text for text in [*texts, (printed.out + printed.err).encode()])
    assert dict(site.handler.seen) == {"/image/1": 1}


@pytest.mark.parametrize("option", ["--rate", "--timeout", "--row-timeout"])
@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
def test_limits_are_numbers(
    site: Site, tmp_path: Path, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(tmp_path / "t.csv", ["url"], [[f"{site.url}/image/1"]])
    assert shard(tmp_path / "t.csv", tmp_path / "out", f"{option}={value}") == 2
    assert option in capsys.readouterr().err


def test_fractions_in_a_table_are_no_classes(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[list[object]] = [[f"{site.url}/image/{k}", value] for k, value in ((0, 0.5), (1, 2))]
    write_csv(tmp_path / "t.csv", ["url", "label"], rows)
    assert shard(tmp_path / "t.csv", tmp_path / "a") == 0
    assert classes(tmp_path / "a") == ()
    assert "0.5" in capsys.readouterr().out
    assert shard(tmp_path / "t.csv", tmp_path / "b", "--class-column", "label") == 3
    assert "--class-column" in capsys.readouterr().err


def test_columns_whose_type_says_nothing_are_named(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = pa.array([0, 1], pa.timestamp("s"))
    amounts = pa.array([1, 2]).cast(pa.decimal128(19, 0))
    urls = [f"{site.url}/image/{k}" for k in (0, 1)]
    columns = {"url": urls, "text": times, "label": amounts, "category": [0, 1]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert shard(tmp_path / "t.parquet", tmp_path / "a") == 0
    out = capsys.readouterr().out
    assert "column text is of type timestamp" in out
    assert "column label is of type decimal128" in out
    for option, name in (("--class-column", "label"), ("--caption-column", "text")):
        assert shard(tmp_path / "t.parquet", tmp_path / "b", option, name) == 2
        assert f"{option} {name}" in capsys.readouterr().err
    assert shard(tmp_path / "t.parquet", tmp_path / "c", "--class-column", "category") == 0
    assert samples(tmp_path / "c", "cls") == ["0", "1"]


def test_of_two_class_columns_the_one_that_is_taken_is_said(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[list[object]] = [[f"{site.url}/image/{k}", k, 1 - k] for k in (0, 1)]
    write_csv(tmp_path / "t.csv", ["url", "coarse_label", "fine_label"], rows)
    assert shard(tmp_path / "t.csv", tmp_path / "out") == 0
    assert "classes from fine_label; --class-column takes coarse_label" in capsys.readouterr().out
    assert samples(tmp_path / "out", "cls") == ["1", "0"]


def test_a_validation_split_of_dead_rows_says_what_to_set(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--validation-share", "0.1", "--block-samples", "2", "--max-bad-share", "0.5")
    fetched = ("--fetched", str(tmp_path / "f"))
    rows: list[list[object]] = [[f"{site.url}/image/{k}"] for k in range(8)]
    write_csv(tmp_path / "t.csv", ["url"], rows)
    assert shard(tmp_path / "t.csv", tmp_path / "a", *words, *fetched) == 0
    tars = [str(path) for path in (tmp_path / "a/validation/shards").iterdir()]
    held = {s["jpg"] for s in webdataset.WebDataset(tars, shardshuffle=False)}
    dead = [[f"{site.url}/{'gone' if encode(k) in held else 'image'}/{k}"] for k in range(8)]
    write_csv(tmp_path / "t.csv", ["url"], [list(row) for row in dead])
    capsys.readouterr()
    assert shard(tmp_path / "t.csv", tmp_path / "b", *words, *fetched) == 3
    error = capsys.readouterr().err
    assert "--validation-share" in error
    assert "--max-bad-share" in error
    again = ("--validation-share", "0", "--overwrite")
    assert shard(tmp_path / "t.csv", tmp_path / "b", *words, *fetched, *again) == 0


def test_a_table_too_small_for_validation_says_so(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(tmp_path / "t.csv", ["url"], [[f"{site.url}/image/{k}"] for k in (0, 1)])
    assert shard(tmp_path / "t.csv", tmp_path / "a", "--validation-share", "0.1", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert any("--block-samples" in note for note in summary["notes"])


def test_a_rate_that_never_ends_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(tmp_path / "t.csv", ["url"], [["http://localhost/1"]])
    assert shard(tmp_path / "t.csv", tmp_path / "out", "--rate", "1e-9") == 2
    assert "--rate" in capsys.readouterr().err
