"""Our corpora as a stock `webdataset.WebDataset`, on a disk and over the wire."""

import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest
import webdataset
from webdataset.gopen import gopen_schemes

from documented_commands import section
from fault_proxy import FAULTS, fault_proxy
from gear_cluster.demo.object_store import StoreEndpoint
from gear_dist.data.manifest import load_samples
from gear_dist.data.stock_webdataset import register_s3, shard_urls
from gear_dist.errors import ConfigError, DataError
from gear_dist.storage.base import MissingObjectError
from gear_dist.storage.open import open_storage
from refusals import refused
from sample_shards import SampleShards


@pytest.fixture(autouse=True)
def schemes() -> Iterator[None]:
    before = dict(gopen_schemes)
    yield
    gopen_schemes.clear()
    gopen_schemes.update(before)


def read(address: str, endpoint: str = "") -> dict[str, dict]:
    urls = shard_urls(address, endpoint)
    return {s["__key__"]: s for s in webdataset.WebDataset(urls, shardshuffle=False)}


def test_a_corpus_on_s3_is_the_one_on_a_disk(sample_shards: SampleShards) -> None:
    here, there = read(f"{sample_shards.file}/train"), read(f"{sample_shards.s3}/train")
    assert len(here) == 192
    assert list(there) == list(here) == load_samples(
        open_storage(f"{sample_shards.s3}/train")
    )["key"].to_pylist()  # fmt: skip
    for key, sample in here.items():
        assert {k: v for k, v in there[key].items() if not k.startswith("__")} == {
            k: v for k, v in sample.items() if not k.startswith("__")
        }


def test_the_three_lines_of_the_page(
    sample_shards: SampleShards, object_store: StoreEndpoint
) -> None:
    """In a process of their own, as a user has them; decoded, and by workers of a DataLoader."""
    page = section("corpora.md", "Loading")
    begin = page.index("import webdataset")
    lines = page[begin : page.index("```", begin)].replace("s3://bucket/corpus", sample_shards.s3)
    assert len(lines.strip().splitlines()) == 3
    code = lines + textwrap.dedent(
        """
        import torch
        assert next(iter(samples.decode("pil")))["jpg"].size == (32, 32)
        loader = torch.utils.data.DataLoader(samples, batch_size=None, num_workers=2)
        print(len({sample["__key__"] for sample in loader}))
        """
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert int(run.stdout) == 192


def test_faults_on_the_way_are_retried(
    sample_shards: SampleShards, object_store: StoreEndpoint
) -> None:
    with fault_proxy(object_store.endpoint, 0.4, seed=3) as (endpoint, proxy):
        for _ in range(2):
            found = read(f"{sample_shards.s3}/train", endpoint)
            assert len(found) == 192
    assert sum(proxy.done[fault] for fault in FAULTS) > 0


def test_what_cannot_be_opened(sample_shards: SampleShards, object_store: StoreEndpoint) -> None:
    register_s3()
    missing = f"{sample_shards.s3}/train/shards/999999.tar"
    with refused(MissingObjectError, missing):
        list(webdataset.WebDataset(missing, shardshuffle=False))
    with refused(ConfigError, missing, "reading", "gear-dist shard"):
        webdataset.gopen(missing, "wb")
    with refused(
        DataError,
        f"{sample_shards.s3}/nothing",
        "manifest/dataset.json",
        "corpus",
        "gear-dist shard",
    ):
        shard_urls(f"{sample_shards.s3}/nothing")
