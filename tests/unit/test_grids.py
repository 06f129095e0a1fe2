"""The grids that a run draws as it goes."""

from pathlib import Path

import pytest
import torch

from gear_dist.config_files import load_config
from gear_dist.errors import DataError
from gear_dist.grids import GridPainter
from gear_dist.metrics_log import MetricsLog
from gear_dist.run_folder import RunFolder
from sample_shards import SampleShards


def test_a_wrong_validation_corpus_is_told_before_training(
    sample_shards: SampleShards, tmp_path: Path
) -> None:
    """Not at the first grid, which may come after a whole stage."""
    nowhere = tmp_path / "nowhere"
    config = load_config(
        None,
        [
            f"data.train={sample_shards.file}/train",
            f"data.validation={nowhere}",
            f"run.root={tmp_path}",
            "data.image_size=32",
        ],
    )
    folder = RunFolder.create(config.run.folder, config)
    with pytest.raises(DataError, match="nowhere"):
        GridPainter(config, folder, MetricsLog([]), torch.device("cpu"))
