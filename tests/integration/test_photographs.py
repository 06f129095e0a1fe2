"""A user's small folder of photographs goes the same way as the sample corpus."""

from pathlib import Path

import pytest

from gear_data_prep.__main__ import main as data_prep
from gear_dist.config.data import DataConfig
from gear_dist.data.loader import build_loader
from photographs import PHOTOGRAPHS, write_photo_folder


def test_forty_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = write_photo_folder(tmp_path / "photos")
    assert len(list(tree.glob("*/*.jpg"))) == 40
    assert data_prep(["shard", str(tree), str(tmp_path / "shards"), "--workers", "1"]) == 0
    config = DataConfig(image_size=64)
    options = {"rank": 0, "world_size": 1, "seed": 0, "num_classes": len(PHOTOGRAPHS)}
    train = build_loader(config, f"{tmp_path}/shards/train", batch_size=8, **options)
    batch = next(iter(train))
    train.close()
    assert batch.images.shape == (8, 3, 64, 64)
    assert len(set(batch.labels.tolist())) >= 2
    held = build_loader(config, f"{tmp_path}/shards/validation", batch_size=8, **options)
    num_held = sum(len(batch.keys) for batch in held.validation_batches())
    assert num_held + train.corpora[0].manifest.info.num_samples == 40
    assert num_held >= 1
