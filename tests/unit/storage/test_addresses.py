"""Addresses: taken apart in one place, refused where only folders of this machine work."""

from pathlib import Path

import pytest

from gear_dist.cli.main import main
from gear_dist.config.loading import load_config
from gear_dist.errors import ConfigError
from gear_dist.storage.addresses import Address, join_address, parse_address, split_address
from gear_dist.storage.local import FileStorage
from gear_dist.storage.open import open_storage
from gear_dist.storage.paths import local_path
from image_files import encode
from refusals import refused

TINY = str(Path(__file__).parents[3] / "configs" / "tiny.yaml")


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("s3://bucket", Address("bucket", "")),
        ("s3://bucket/", Address("bucket", "")),
        ("S3://bucket/a b/c?d#e/", Address("bucket", "a b/c?d#e")),
        ("file:///a%20b/c", Address("", "/a b/c")),
        ("file:///", Address("", "/")),
        ("a/b", Address("", "a/b")),
        ("/a://b", Address("", "/a://b")),
    ],
)
def test_parts_of_an_address(text: str, parsed: Address) -> None:
    assert parse_address(text) == parsed
    assert parse_address(str(parsed)) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s3://",
        "s3:///a",
        "file://a",
        "file://",
        "gs://bucket/a",
        "s3://b//a",
        "s3://b/a//c",
        "s3://b/../a",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    for use in (open_storage, lambda address: join_address(address, "x"), split_address):
        with pytest.raises(ConfigError):
            use(text)
    with refused(ConfigError, "run.root", repr(text)):
        local_path(text, "run.root")


@pytest.mark.parametrize(
    ("address", "parent", "name"),
    [
        ("s3://bucket/a", "s3://bucket", "a"),
        ("s3://bucket/a/b/", "s3://bucket/a", "b"),
        ("file:///a/b", "/a", "b"),
        ("/a", "/", "a"),
        ("a", ".", "a"),
    ],
)
def test_addresses_are_joined_and_split(address: str, parent: str, name: str) -> None:
    assert split_address(address) == (parent, name)
    joined, whole = open_storage(join_address(parent, name)), open_storage(address)
    assert joined.address == whole.address


@pytest.mark.parametrize("address", ["s3://bucket", "/", ".", "a/.."])
def test_what_nothing_holds_is_not_split(address: str) -> None:
    with pytest.raises(ConfigError):
        split_address(address)


@pytest.mark.parametrize("destination", ["", "s3://", "s3:///x", "gs://bucket"])
def test_shards_go_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, destination: str, capsys: pytest.CaptureFixture
) -> None:
    """An empty destination stood for the root of the file system, `s3://` for a folder `s3:`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "1.jpg").write_bytes(encode())
    assert main(["shard", "images", destination]) == 2
    assert "DESTINATION" in capsys.readouterr().err
    assert main(["shard", destination, "out"]) == 2
    assert main(["shard", "images", "out", "--without-duplicates-of", destination or "s3://"]) == 2
    assert [path.name for path in tmp_path.iterdir() if path.name != "out"] == ["images"]


@pytest.mark.parametrize(
    "setting",
    [
        "run.root",
        "stages.init_from",
        "data.cache_folder",
        "teacher.path",
        "more_teachers.b.path",
        "losses.lpips_vgg16_path",
        "losses.lpips_heads_path",
    ],
)
def test_settings_that_are_folders_refuse_object_stores(setting: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [f"{setting}=s3://bucket/x"])
    assert str(caught.value).startswith(f"{setting}=s3://bucket/x ")
    load_config(None, [f"{setting}={tmp_path.as_uri()}"])


@pytest.mark.parametrize(
    "setting", ["data.train", "data.validation", "checkpoint.address", "run.resume"]
)
def test_settings_that_are_addresses_name_a_bucket(setting: str) -> None:
    with refused(ConfigError, setting, "'s3://'", "s3://BUCKET/PREFIX"):
        load_config(None, [f"{setting}=s3://"])
    load_config(None, [f"{setting}=s3://bucket/x"])


def test_a_run_root_of_an_empty_name_is_refused() -> None:
    with refused(ConfigError, "run.root=''"):
        load_config(None, ["run.root="])


def test_run_folders_may_be_given_as_file_addresses(tmp_path: Path) -> None:
    config = load_config(None, [f"run.root={tmp_path.as_uri()}", "run.name=a"])
    assert config.run.folder == tmp_path / "a"
    storage = open_storage(tmp_path.as_uri())
    assert isinstance(storage, FileStorage)
    assert storage.root == tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ["report", "s3://bucket/run"],
        ["sample", "s3://bucket/run"],
        ["reconstruct", "s3://bucket/run"],
        ["evaluate", "s3://bucket/run"],
        ["tokenize", "s3://bucket/run", "--images", "a", "--out", "b"],
        ["tokenize", "run", "--images", "s3://bucket/a", "--out", "b"],
        ["tokenize", "run", "--images", "a", "--out", "s3://bucket/b"],
        ["import", "a.pt", "--out", "s3://bucket/b"],
        ["export", "run", "--out", "s3://bucket/b"],
        ["export", "s3://bucket", "--out", "b"],
        ["teacher", "corpus", "--out", "s3://bucket/b"],
        ["preview", "corpus", "--out", "s3://bucket/b"],
        ["stats", "corpus", "--html", "s3://bucket/b"],
        ["reproduce", "configs/tiny.yaml", "--out", "s3://bucket/b"],
        ["sample-corpus", "s3://bucket/b"],
        ["shard", "a", "b", "--labels", "s3://bucket/labels"],
        ["shard", "a", "b", "--classes", "s3://bucket/classes"],
        ["doctor", "--root", "s3://bucket/runs"],
        ["store", "start", "--folder", "s3://bucket/b"],
    ],
)
def test_commands_that_want_folders_refuse_object_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    assert main(words) == 2
    assert "s3://bucket" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    "text",
    ["s3:/b/x", "s3:b", "s3//b/x", "S3:/x", "gs:/b", "file:x", " ", "\t", " s3://b", "photos ",
     "s3://../x", "s3://b/../x", "s3://b/./x", "s3://b/x//y", "s3://-/x"],
)  # fmt: skip
def test_mistyped_addresses_are_no_folders(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in/cat").mkdir(parents=True)
    with pytest.raises(ConfigError):
        parse_address(text, "DESTINATION")
    assert main(["shard", "in", text]) == 2
    assert main(["train", TINY, f"checkpoint.address={text}", "--dry-run"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    "text", ["photos/s3", "s3", "a:b", "s3-data/x", "s3://b", "s3://b/x.y/..z"]
)
def test_addresses_that_are_some(text):
    assert str(parse_address(text))
