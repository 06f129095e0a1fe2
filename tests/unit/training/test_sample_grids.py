"""The grids that a run draws as it goes."""

from pathlib import Path

import torch

from gear_dist.config.loading import load_config
from gear_dist.errors import DataError
from gear_dist.runs.loggers import MetricsLog
from gear_dist.runs.run_folder import RunFolder
from gear_dist.training.conditions import load_conditions
from gear_dist.training.sample_grids import GridPainter
from refusals import refused
from sample_shards import SampleShards

CPU = torch.device("cpu")


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
    conditions = load_conditions(config, CPU)
    with refused(DataError, nowhere, "manifest/dataset.json", "gear-dist shard"):
        GridPainter(config, folder, MetricsLog([]), CPU, conditions=conditions, num_classes=16)


def test_grids_ask_for_the_classes_that_the_corpus_has(
    sample_shards: SampleShards, tmp_path: Path
) -> None:
    address = f"{sample_shards.file}/train"
    words = [f"data.train={address}", f"run.root={tmp_path}", "data.image_size=32"]
    config = load_config(None, [*words, "generator.num_classes=1000"])
    folder = RunFolder.create(config.run.folder, config)
    conditions = load_conditions(config, CPU)
    painted = [
        GridPainter(config, folder, MetricsLog([]), CPU, conditions=conditions, num_classes=number)
        for number in (16, 0)
    ]
    assert set(painted[0].samples.condition.labels_B.tolist()) == set(range(16))
    assert painted[1].samples.condition.labels_B.max() > 16, (
        "a corpus without classes: all that the generator has"
    )
