"""`gear-dist store check`: each capability is told where it is, and missed where it is not."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gear_cluster.conformance import checks
from gear_cluster.conformance.checks import Finding
from gear_cluster.demo.object_store import StoreEndpoint
from gear_dist.cli.main import main
from gear_dist.storage.open import open_storage
from gear_dist.storage.s3_client import make_client
from lacking_store import ADDS, LACKS, changed_store

BUCKET = "gear-tests-check"
EMBEDDED_LACKS = {
    "conditional create",
    "CRC-64/NVME of the whole object",
    "entity tags",
    "status 206",
    "suffix ranges",
    "conditional replace",
    "copies in parts",
    "object labels",
    "object beside a folder of its name",
}
"""What docs/object-storage.md says of rclone 1.75."""


@pytest.fixture(autouse=True)
def corpus(object_store: StoreEndpoint) -> Iterator[None]:
    """A user's object beside the scratch prefix, which stays the only one."""
    storage = open_storage(f"s3://{BUCKET}")
    storage.write("data/corpus", b"mine")
    yield
    assert [item.key for item in storage.list()] == ["data/corpus"]
    assert storage.read("data/corpus") == b"mine"


def findings(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Finding]]:
    code = main(["store", "check", f"s3://{BUCKET}/data", "--json", *words])
    rows = json.loads(capsys.readouterr().out)["findings"]
    return code, {row["name"]: Finding(**row) for row in rows}


def test_the_embedded_store_does_what_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = findings(capsys)
    assert code == 0
    assert {name for name, one in found.items() if not one.ok} == EMBEDDED_LACKS
    assert not any(found[name].need == "required" for name in EMBEDDED_LACKS)


@pytest.mark.parametrize("lack", LACKS)
def test_what_a_store_lacks_is_told(
    lack: str, object_store: StoreEndpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    with changed_store(object_store.endpoint, lack) as endpoint:
        code, found = findings(capsys, "--endpoint", endpoint)
    if lack == "delete":
        open_storage(f"s3://{BUCKET}").remove_leftovers()
        for item in list(open_storage(f"s3://{BUCKET}").list()):
            if "gear-store-check" in item.key:
                open_storage(f"s3://{BUCKET}").delete(item.key)
    assert not found[lack].ok
    assert found[lack].seen
    required = {name for name, one in found.items() if one.need == "required"}
    assert code == (5 if required & {name for name, one in found.items() if not one.ok} else 0)
    assert code == (5 if lack in required else 0)


def test_what_a_store_has_is_told(
    object_store: StoreEndpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    with changed_store(object_store.endpoint, ADDS) as endpoint:
        _, found = findings(capsys, "--endpoint", endpoint)
    assert found[ADDS].ok


def test_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "check", f"s3://{BUCKET}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    named = [one[0] for one in checks._CAPABILITIES]
    assert all(any(name in line for line in lines) for name in named)


def test_a_store_that_lacks_what_is_required_is_named(
    object_store: StoreEndpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    with changed_store(object_store.endpoint, "ranged reads") as endpoint:
        assert main(["store", "check", f"s3://{BUCKET}", "--endpoint", endpoint]) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert "ranged reads" in line


def test_an_absent_bucket_is_made_and_removed(object_store: StoreEndpoint) -> None:
    assert main(["store", "check", "s3://gear-tests-passing/x", "--json"]) == 0
    buckets = make_client().list_buckets()["Buckets"]
    assert "gear-tests-passing" not in [bucket["Name"] for bucket in buckets]


def test_addresses_that_cannot_be_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["store", "check", str(tmp_path)]) == 2
    assert main(["store", "check", f"s3://{BUCKET}", "--endpoint", "http://k:s@127.0.0.1"]) == 2
    assert main(["store", "check", f"s3://{BUCKET}", "--endpoint", "http://127.0.0.1:9"]) == 3
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        assert main(["store", "check", f"s3://{BUCKET}"]) == 3


def test_the_documentation_names_every_capability() -> None:
    text = (Path(__file__).parents[3] / "docs/object-storage.md").read_text()
    assert not [name for name, *_ in checks._CAPABILITIES if f"| {name} |" not in text]
