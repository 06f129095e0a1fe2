"""Sharding onto a store that fails, hangs up, or does the work and loses the answer."""

import pytest

from fault_proxy import FAULTS, LOST, fault_proxy
from gear_cluster.demo.object_store import StoreEndpoint
from gear_data_prep.__main__ import main as data_prep
from gear_dist.storage import s3_client, s3_upload
from gear_dist.storage.s3 import S3Storage
from sample_shards import SampleShards

SHARE = 0.3


@pytest.fixture(autouse=True)
def _small_parts_and_short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "_MAX_WAIT_S", 0.05)
    monkeypatch.setattr(s3_upload, "MULTIPART_BYTES", 40_000)
    monkeypatch.setattr(s3_upload, "PART_BYTES", 40_000)


def contents(storage: S3Storage) -> dict[str, bytes]:
    return {item.key: storage.read(item.key) for item in storage.list()}


def num_uploads(storage: S3Storage) -> int:
    found = storage.client.list_multipart_uploads(Bucket=storage.bucket).get("Uploads", [])
    return sum(item["Key"].startswith(storage.prefix) for item in found)


def test_nothing_is_lost_or_torn(sample_shards: SampleShards, object_store: StoreEndpoint) -> None:
    """PUTs, parts, completions, aborts, deletions, listings: all of them fail, in all ways."""
    address = "s3://gear-tests-faults/corpus"
    with fault_proxy(object_store.endpoint, SHARE, writes=True) as (endpoint, proxy):
        options = ["--shard-samples", "50", "--workers", "1", "--endpoint", endpoint]
        words = ["shard", str(sample_shards.tree), address, *options]
        assert data_prep(words) == 0
        assert data_prep([*words, "--overwrite"]) == 0
        assert data_prep(["verify", f"{address}/train", "--endpoint", endpoint]) == 0
    straight = S3Storage(address)
    assert contents(straight) == contents(S3Storage(sample_shards.s3))
    assert num_uploads(straight) == 0
    done = proxy.done
    assert sum(done[f"PUT {fault}"] > 0 for fault in (*FAULTS, LOST)) >= 4, done
    assert any(done[f"POST {fault}"] for fault in (*FAULTS, LOST)), done


def test_a_store_that_dies_in_the_middle(
    sample_shards: SampleShards, object_store: StoreEndpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error, no half corpus that passes for a whole one, and the same command finishes it."""
    address = "s3://gear-tests-faults/dying"
    words = ["shard", str(sample_shards.tree), address, "--shard-samples", "50", "--workers", "1"]
    with fault_proxy(object_store.endpoint, 0.0, writes=True) as (endpoint, proxy):
        draw = proxy.draw

        def die_after_ten_parts(method: str) -> str:
            proxy.share = float(proxy.done["PUT none"] >= 10)
            return draw(method)

        proxy.draw = die_after_ten_parts
        assert data_prep([*words, "--endpoint", endpoint]) in (3, 5)
        assert "s3://gear-tests-faults/dying" in capsys.readouterr().err
    straight = S3Storage(address)
    expected = contents(S3Storage(sample_shards.s3))
    torn = {key: data for key, data in contents(straight).items() if expected.get(key) != data}
    assert all(key.startswith("train/manifest/parts/") for key in torn)
    assert "train/manifest/dataset.json" not in contents(straight)
    assert data_prep(words) == 0
    assert contents(straight) == expected
    assert num_uploads(straight) == 0
