"""What tests of several rooms share: a real S3 server, and a small sharded corpus on it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from gear_cluster.demo.object_store import StoreEndpoint, ensure_running, stop
from gear_data_prep.__main__ import main as data_prep
from gear_data_prep.demo.procedural_corpus import CLASSES, SampleCorpusSettings, make_sample_corpus
from sample_shards import SampleShards

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell's background jobs ignore it, and so would every process that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreEndpoint]:
    """A real S3 server; endpoint and credentials are in the environment from then on."""
    folder = tmp_path_factory.mktemp("object_store")
    store = ensure_running(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name, value in store.environment().items():
            patch.setenv(name, value)
        yield store
    stop(folder)


@pytest.fixture(scope="session")
def sample_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ImageFolder tree of `sample_shards`."""
    tree = tmp_path_factory.mktemp("sample_tree")
    num_classes = len(CLASSES)
    make_sample_corpus(tree, SampleCorpusSettings(32, 12 * num_classes, 2 * num_classes), workers=1)
    return tree


@pytest.fixture(scope="session")
def sample_shards(
    sample_tree: Path, tmp_path_factory: pytest.TempPathFactory, object_store: StoreEndpoint
) -> SampleShards:
    """The same corpus on a folder and on S3."""
    folder = tmp_path_factory.mktemp("sample_shards").as_uri()
    bucket = "s3://gear-tests/sample"
    for destination in (folder, bucket):
        options = ["--shard-samples", "50", "--workers", "1"]
        assert data_prep(["shard", str(sample_tree), destination, *options]) == 0
    return SampleShards(sample_tree, folder, bucket)
