"""The judge and the evaluation protocol, with generators whose quality is known."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gear_dist.config.data import DataConfig
from gear_dist.data.labelled import LabelledImages
from gear_dist.errors import DataError
from gear_dist.evaluation import frechet
from gear_dist.evaluation.classifier import (
    FEATURE_WIDTH,
    ClassifierRecipe,
    ReferenceClassifier,
    ResidualNet,
    load_or_train_classifier,
    load_validation,
    train_judge,
)
from gear_dist.evaluation.protocol import EvaluationSettings, evaluate
from gear_dist.models.generator import Condition
from refusals import refused

COLOURS = torch.tensor([[200, 40, 40], [40, 200, 40], [40, 40, 200]], dtype=torch.uint8)
SETTINGS = EvaluationSettings(images_per_class=10, seeds=(0, 1, 2))


def coloured(labels: Tensor, seed: int) -> Tensor:
    """Images whose class is their colour, with noise."""
    random = torch.Generator().manual_seed(seed)
    noise = torch.randint(-30, 31, (len(labels), 3, 16, 16), generator=random)
    return (COLOURS[labels][:, :, None, None].int() + noise).clamp(0, 255).to(torch.uint8)


def corpus(count: int, seed: int) -> LabelledImages:
    labels = torch.arange(count) % 3
    return LabelledImages(coloured(labels, seed), labels, {}, 3, {}, f"plan{seed}", count)


@pytest.fixture(scope="module")
def judge() -> ReferenceClassifier:
    recipe = ClassifierRecipe(16, "plan1", "plan2", steps=40, batch=32)
    net, stats = train_judge(corpus(600, 1), corpus(90, 2), recipe)
    assert stats.accuracy > 0.97
    assert stats.warnings == ()
    return ReferenceClassifier(net, stats, "cpu")


def good(condition: Condition, guidance: float, seed: int) -> Tensor:
    """Right with guidance; without, a third of the images show the next class."""
    labels = condition.labels_B
    wrong = (torch.arange(len(labels)) % 3 == 0) & (guidance == 1)
    return coloured((labels + wrong) % 3, 100 + seed)


def test_accuracy_counts_asked_classes_by_seed_and_guidance(judge):
    result = evaluate(
        generate=good,
        reconstruct=lambda images: images,
        judge=judge,
        validation=corpus(90, 2),
        guidance=2.0,
        settings=SETTINGS,
    )
    assert result.guided.guidance == 2.0
    assert result.guided.accuracy.median >= 0.95
    assert len(result.guided.accuracy.values) == 3
    assert result.unguided.accuracy.median == pytest.approx(2 / 3, abs=0.05)
    assert result.num_generated == 30
    assert result.chance_accuracy == pytest.approx(1 / 3)
    assert result.reconstruction.psnr_db == 100
    assert result.reconstruction.ssim == pytest.approx(1)
    assert result.reconstruction.accuracy > 0.97
    assert result.reconstruction.num_images == 90


def test_frechet_distance_tells_noise_from_the_real_distribution(judge):
    def noise(condition: Condition, guidance: float, seed: int) -> Tensor:
        random = torch.Generator().manual_seed(seed)
        return torch.randint(0, 256, (condition.num_images, 3, 16, 16), generator=random).to(
            torch.uint8
        )

    common = {"judge": judge, "validation": corpus(90, 2), "guidance": 1.0, "settings": SETTINGS}
    near = evaluate(generate=good, reconstruct=lambda images: images, **common)
    far = evaluate(generate=noise, reconstruct=lambda images: 255 - images, **common)
    assert near.real_frechet < near.guided.frechet.median < far.guided.frechet.median
    assert far.reconstruction.psnr_db < 10
    assert near.guided == near.unguided  # guidance 1 is measured once


def test_result_is_strict_json_and_readable(judge):
    result = evaluate(
        generate=None,
        reconstruct=lambda images: images,
        judge=judge,
        validation=corpus(3, 2),
        guidance=2.0,
        settings=SETTINGS,
    )
    node = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert node["frechet_name"] == frechet.NAME
    assert "not FID" in frechet.NAME
    assert node["guided"] is None
    assert node["real_frechet"] is None  # too few images
    assert node["reconstruction"]["psnr_db"] == 100
    assert node["judge"]["accuracy"] > 0.97
    assert any("no generator" in text for text in node["warnings"])
    assert result.summary()[0].startswith("reconstruction: PSNR 100.00 dB")


def test_generation_without_a_judge_is_left_out_and_said(judge):
    result = evaluate(
        generate=good,
        reconstruct=lambda images: images,
        judge=None,
        validation=corpus(9, 2),
        guidance=2.0,
        settings=SETTINGS,
    )
    assert result.guided is None
    assert math.isnan(result.reconstruction.accuracy)
    assert "fewer than two classes" in result.warnings[0]
    json.dumps(result.to_json(), allow_nan=False)


def test_few_training_images_are_flagged_yet_measured():
    recipe = ClassifierRecipe(16, "same", "same", steps=5, batch=32)
    few = corpus(12, 1)
    net, stats = train_judge(few, few, recipe)
    assert any("unreliable: 12 training images" in text for text in stats.warnings)
    assert any("its own training images" in text for text in stats.warnings)
    result = evaluate(
        generate=good,
        reconstruct=lambda images: images,
        judge=ReferenceClassifier(net, stats, "cpu"),
        validation=few,
        guidance=2.0,
        settings=SETTINGS,
    )
    assert 0 <= result.guided.accuracy.median <= 1
    assert any("12 validation images only" in text for text in result.warnings)


@pytest.mark.parametrize("side", [16, 64, 65, 256])
def test_features_have_one_width_at_every_image_size(side):
    net = ResidualNet(3).eval()
    assert net.features(torch.zeros(2, 3, side, side)).shape == (2, FEATURE_WIDTH)


def test_judge_is_trained_once_per_corpus(sample_shards, tmp_path):
    data = DataConfig(
        train=sample_shards.s3 + "/train",
        validation=sample_shards.s3 + "/validation",
        image_size=32,
    )
    lines: list[str] = []
    first = load_or_train_classifier(data, tmp_path, steps=3, report=lines.append)
    assert "right on 32 real validation images" in lines[-1]
    second = load_or_train_classifier(data, tmp_path, steps=3, report=lines.append)
    assert "kept" in lines[-1]
    assert len(list(tmp_path.iterdir())) == 1
    images = load_validation(data).images
    (classes, features), (same_classes, same_features) = (
        first.predict(images),
        second.predict(images),
    )
    assert torch.equal(classes, same_classes)
    assert torch.allclose(features, same_features, rtol=1e-5, atol=1e-6)
    assert first.stats == second.stats
    load_or_train_classifier(
        data, tmp_path, steps=4, report=lines.append
    )  # another recipe, another file
    assert len(list(tmp_path.iterdir())) == 2


def test_damaged_cache_is_trained_again(sample_shards, tmp_path):
    data = DataConfig(train=sample_shards.file + "/validation", image_size=32)
    judge = load_or_train_classifier(data, tmp_path, steps=2)
    assert not judge.stats.held_out
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])
    again = load_or_train_classifier(data, tmp_path, steps=2)
    assert list(tmp_path.iterdir()) == [path]
    assert again.stats.accuracy == judge.stats.accuracy


def test_corpora_with_other_classes_are_refused(sample_shards, tmp_path, one_class_shards):
    data = DataConfig(
        train=sample_shards.file + "/train", validation=one_class_shards, image_size=32
    )
    with refused(DataError, "classes", one_class_shards, data.train):
        load_or_train_classifier(data, tmp_path, steps=1)
    single = DataConfig(train=one_class_shards, image_size=32)
    assert load_or_train_classifier(single, tmp_path, steps=1) is None


@pytest.fixture(scope="module")
def one_class_shards(sample_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    from gear_data_prep.__main__ import main as data_prep

    source = tmp_path_factory.mktemp("one_class")
    (source / "circle").symlink_to(next((sample_tree / "train").iterdir()))
    destination = tmp_path_factory.mktemp("one_class_shards").as_uri()
    assert data_prep(["shard", str(source), destination, "--workers", "1"]) == 0
    return destination + "/train"
