"""What the tests of whole runs share."""

from pathlib import Path

import pytest

from gear_dist.cli.main import main
from sample_shards import SampleShards


@pytest.fixture(scope="session")
def teacher(sample_shards: SampleShards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolutional teacher's file, hardly trained."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    words = ["teacher", f"{sample_shards.file}/train", "--out", str(path), "--steps", "2"]
    assert main(words) == 0
    return path
