"""Tables of URLs: fetched once, politely, from public hosts only; then sharded like any source."""

import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from gear_data_prep.__main__ import main as data_prep
from gear_data_prep.sources import fetch_table, public_address
from gear_data_prep.sources.fetch import Fetcher, FetchError, FetchLimits
from gear_data_prep.sources.response_body import image_of
from gear_data_prep.sources.row_connection import RetryError
from gear_dist.data.manifest import load_manifest
from gear_dist.storage.open import open_storage
from image_files import contents, encode
from refusals import has_word, refused
from web_site import Site, serve_site


@pytest.fixture
def site() -> Iterator[Site]:
    with serve_site() as site:
        yield site


LIMITS = FetchLimits(max_bytes=200_000, timeout_s=0.4, total_s=2, attempts=3, rate=0, private=True)


@pytest.mark.parametrize("path", ["image/3", "flaky/3", "moved/3", "gzip/3", "claimed/3"])
def test_fetch(site: Site, path: str) -> None:
    assert Fetcher(LIMITS, 2).fetch(f"{site.url}/{path}") == encode(3)


@pytest.mark.parametrize(
    ("path", "either"),
    [
        ("nothing", ["HTTP 404"]),
        ("loop", ["5 redirects"]),
        ("file", ["http or https URL"]),
        ("long", ["200000 bytes"]),
        ("endless", ["200000 bytes", "2 s"]),
        ("slow", ["timed out", "2 s"]),
        ("cut", ["connection"]),
        ("text", ["HTML"]),
        ("empty", ["empty"]),
        ("junk", ["no image"]),
        ("header", ["damaged header"]),
        ("part/3", ["cut off"]),
        ("avif", ["AVIF"]),
        ("bomb", ["200000 bytes"]),
        ("torn", ["cut off"]),
        ("brotli", ["Content-Encoding (br)"]),
    ],
)
def test_failures_have_a_reason_and_an_end(site: Site, path: str, either: list[str]) -> None:
    with refused(FetchError) as caught:
        Fetcher(LIMITS, 2).fetch(f"{site.url}/{path}")
    assert any(has_word(str(caught.value), words) for words in either), str(caught.value)


@pytest.mark.parametrize(
    "url", ["ftp://x/y", "x", "", "http://", "http://[::", "file:///etc/passwd"]
)
def test_no_urls(url: str) -> None:
    with refused(FetchError, "URL"):
        Fetcher(LIMITS, 2).fetch(url)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "10.0.0.1", "169.254.169.254", "0.0.0.0",
             "[::ffff:127.0.0.1]", "192.168.1.1", "2130706433"]
)  # fmt: skip
def test_private_hosts_are_refused_before_they_are_asked(site: Site, host: str) -> None:
    port = site.url.rpartition(":")[2]
    with refused(FetchError, "host", "--allow-private"):
        Fetcher(LIMITS._replace(private=False), 2).fetch(f"http://{host}:{port}/image/1")
    assert not site.handler.seen


def test_redirects_to_private_hosts_are_refused(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = public_address.is_public
    monkeypatch.setattr(public_address, "is_public", lambda ip: ip == "127.0.0.1" or real(ip))
    with refused(FetchError, "host", "--allow-private"):
        Fetcher(LIMITS._replace(private=False), 2).fetch(f"{site.url}/private")
    assert site.handler.seen["/private"] == 1


def test_requests_to_a_host_keep_their_rate(site: Site) -> None:
    fetcher = Fetcher(LIMITS._replace(rate=20, total_s=10), 8)
    threads = [
        threading.Thread(target=fetcher.fetch, args=(f"{site.url}/image/{k}",)) for k in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times = sorted(site.handler.times)
    assert times[-1] - times[0] > 0.3


@pytest.mark.parametrize("path", ["image", "moved"])
def test_slow_rates_drop_no_rows(site: Site, path: str) -> None:
    """The last of these waits longer for its turn than a row may take."""
    fetcher = Fetcher(LIMITS._replace(rate=4, total_s=1, timeout_s=1), 8)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda k: fetcher.fetch(f"{site.url}/{path}/{k}"), range(8)))
    assert found == [encode(k) for k in range(8)]


def test_stopping_ends_waits(site: Site) -> None:
    """Of Ctrl-C: the second row's turn comes in a thousand seconds."""
    fetcher = Fetcher(LIMITS._replace(rate=0.001), 1)
    assert fetcher.fetch(f"{site.url}/image/1") == encode(1)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(fetcher.fetch, f"{site.url}/image/2")
        fetcher.stop()
        with pytest.raises(FetchError):
            second.result()
    assert not site.handler.seen["/image/2"]


def write_table(path: Path, site: Site, kind: str) -> None:
    urls = [f"{site.url}/image/{k}" for k in range(20)]
    urls += [f"{site.url}/missing", f"{site.url}/flaky/20", "nonsense"]
    captions = [f"number {k}" for k in range(23)]
    if kind == "parquet":
        pq.write_table(pa.table({"url": urls, "caption": captions}), path)
        return
    separator = "\t" if kind == "tsv" else ","
    lines = [f'{u}{separator}"{c}"' for u, c in zip(urls, captions, strict=True)]
    path.write_text("\n".join([f"url{separator}caption", *lines]) + "\n")


OPTIONS = ("--kind", "urls", "--allow-private", "--rate", "0", "--validation-share", "0",
           "--workers", "1", "--timeout", "2", "--shard-samples", "10",
           "--max-bad-share", "0.1")  # fmt: skip


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv"])
def test_a_table_of_urls(
    site: Site, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_table, "CHUNK_ROWS", 7)
    table = tmp_path / f"table.{kind}"
    write_table(table, site, kind)
    assert data_prep(["shard", str(table), str(tmp_path / "out"), *OPTIONS]) == 0
    urls = sorted(str(path) for path in (tmp_path / "out/train/shards").iterdir())
    found = {s["jpg"]: s["txt"] for s in webdataset.WebDataset(urls, shardshuffle=False)}
    wanted = {encode(k): f"number {k}".encode() for k in range(20)}
    assert found == {**wanted, encode(20): b"number 21"}
    report = json.loads((tmp_path / "out/train/manifest/quarantine.json").read_text())
    assert report["skipped"] == {"not-fetched": 2}
    asked = site.handler.seen.total()
    before = contents(tmp_path / "out/train")
    words = [*OPTIONS, "--fetched", str(tmp_path / "out/fetched")]
    assert data_prep(["shard", str(table), str(tmp_path / "again"), *words]) == 0
    assert site.handler.seen.total() == asked, "what was fetched is not fetched again"
    after = contents(tmp_path / "again/train")
    assert {k: v for k, v in after.items() if k.endswith("tar")} == {
        k: v for k, v in before.items() if k.endswith("tar")
    }


def test_an_interrupted_fetch_goes_on(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_table, "CHUNK_ROWS", 5)
    write_table(tmp_path / "t.csv", site, "csv")
    out = tmp_path / "out"
    assert data_prep(["shard", str(tmp_path / "t.csv"), str(out), *OPTIONS]) == 0
    straight = contents(out)
    for name in ("ledger/000002.json", "ledger/000004.json"):
        (out / "fetched" / name).unlink()
    site.handler.seen.clear()
    assert data_prep(["shard", str(tmp_path / "t.csv"), str(out), *OPTIONS]) == 0
    assert site.handler.seen.total() < 12
    assert contents(out) == straight


def test_failures_are_tried_again_on_demand(site: Site, tmp_path: Path) -> None:
    table = pa.table({"url": [f"{site.url}/image/1", f"{site.url}/flaky/2"]})
    pq.write_table(table, tmp_path / "t.parquet")
    words = ["shard", str(tmp_path / "t.parquet"), str(tmp_path / "out"), *OPTIONS]
    assert data_prep([*words, "--attempts", "1"]) == 3, "half of the rows is more than a tenth"
    words += ["--max-bad-share", "0.5"]
    assert data_prep([*words, "--attempts", "1"]) == 0
    corpus = open_storage(str(tmp_path / "out/train"))
    assert load_manifest(corpus).info.num_samples == 1
    assert data_prep([*words, "--refetch"]) == 3, "that is another plan"
    assert data_prep([*words, "--refetch", "--overwrite"]) == 0
    assert load_manifest(corpus).info.num_samples == 2
    assert site.handler.seen["/image/1"] == 1


def test_answers_that_are_no_images_are_errors_of_their_rows(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ["image/1", "image/2", "text", "empty", "part/3"]
    pq.write_table(pa.table({"url": [f"{site.url}/{p}" for p in paths]}), tmp_path / "t.parquet")
    words = ["shard", str(tmp_path / "t.parquet"), str(tmp_path / "out"), *OPTIONS]
    words += ["--max-bad-share", "0.6", "--json", "--attempts", "1"]
    assert data_prep(words) == 0
    fetch = json.loads(capsys.readouterr().out)["fetch"]
    assert fetch["num_fetched"] == 2
    assert sorted(fetch["errors"].values()) == [1, 1, 1]
    assert len(list((tmp_path / "out/fetched/objects").rglob("*/*"))) == 2, "nothing else is kept"
    site.handler.seen["/part/3"] = 5
    assert data_prep(words) == 0
    assert json.loads(capsys.readouterr().out)["fetch"]["num_fetched"] == 2
    assert data_prep([*words, "--refetch", "--overwrite"]) == 0
    assert json.loads(capsys.readouterr().out)["fetch"]["num_fetched"] == 3
    assert load_manifest(open_storage(str(tmp_path / "out/train"))).info.num_samples == 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_images_of_every_kind_are_whole(kind: str) -> None:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}
    Image.new("RGB", (40, 30), (9, 99, 199)).save(stream, kind, **options)
    data = stream.getvalue()
    assert image_of(data, "", 10_000) == data
    assert image_of(data + b"a film", "gzip", 10_000) == data + b"a film"
    if kind in ("JPEG", "PNG", "WEBP"):
        with pytest.raises(RetryError):
            image_of(data[:-20], "", 10_000)


def test_ledgers_of_another_table_are_refused(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2):
        table = pa.table({"url": [f"{site.url}/image/{number}"]})
        pq.write_table(table, tmp_path / f"{number}.parquet")
    words = ["--fetched", str(tmp_path / "f"), *OPTIONS]
    assert data_prep(["shard", f"{tmp_path}/1.parquet", f"{tmp_path}/a", *words]) == 0
    assert data_prep(["shard", f"{tmp_path}/2.parquet", f"{tmp_path}/b", *words]) == 3
    assert "another table" in capsys.readouterr().err


def test_a_damaged_object_is_an_error(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path / "t.csv", site, "csv")
    words = ["shard", str(tmp_path / "t.csv")]
    assert data_prep([*words, str(tmp_path / "out"), *OPTIONS]) == 0
    victim = next((tmp_path / "out/fetched/objects").rglob("*/*"))
    victim.write_bytes(victim.read_bytes()[:-1])
    again = [*OPTIONS, "--fetched", str(tmp_path / "out/fetched")]
    assert data_prep([*words, str(tmp_path / "b"), *again]) == 3
    assert "damaged" in capsys.readouterr().err


def test_a_table_and_its_images_on_s3(site: Site, object_store: object, tmp_path: Path) -> None:
    """All on S3 by an endpoint that is given, not taken from the environment."""
    write_table(tmp_path / "t.csv", site, "csv")
    address = "s3://gear-tests-urls"
    open_storage(address).write("t.csv", (tmp_path / "t.csv").read_bytes())
    options = [*OPTIONS, "--endpoint", object_store.endpoint]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        patch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        assert data_prep(["shard", f"{address}/t.csv", f"{address}/out", *options]) == 0
        corpus = open_storage(f"{address}/out/train", object_store.endpoint)
        assert load_manifest(corpus).info.num_samples == 21
