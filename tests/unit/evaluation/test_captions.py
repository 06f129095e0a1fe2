"""Scores of captions: a perfect generator, one that swaps, and the numbers between."""

import pytest
import torch

from gear_dist.config.data import DataConfig
from gear_dist.data.labelled import LabelledImages
from gear_dist.errors import ConfigError
from gear_dist.evaluation.captions import (
    ALL,
    choose_attributes,
    load_or_train_attribute_judge,
    score_captions,
    train_attribute_judge,
)
from gear_dist.models.classifier_training import predict
from refusals import refused

SIZES = {"side": 2, "tone": 2}


def draw(side: int, tone: int) -> torch.Tensor:
    """A bright half, left or right, in one of two colours."""
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    image[0 if tone else 2, :, 8 * side : 8 * side + 8] = 220
    return image


def corpus(count: int) -> LabelledImages:
    random = torch.Generator().manual_seed(0)
    attributes = {name: torch.randint(2, (count,), generator=random) for name in SIZES}
    pairs = list(zip(attributes["side"].tolist(), attributes["tone"].tolist(), strict=True))
    return LabelledImages(
        images=torch.stack([draw(*pair) for pair in pairs]),
        labels=torch.full((count,), -1),
        attributes=attributes,
        num_classes=0,
        attribute_sizes=SIZES,
        plan_hash="",
        num_sources=count,
        captions=tuple(f"{side} {tone}" for side, tone in pairs),
    )


@pytest.fixture(scope="module")
def judge():
    return train_attribute_judge(corpus(256), list(SIZES), steps=60)


def test_images_are_scored_by_what_their_captions_say(judge):
    held_out = corpus(48)

    def perfect(captions, seed):
        return torch.stack([draw(*map(int, caption.split())) for caption in captions])

    def wrong_side_on_seed_1(captions, seed):
        pairs = [tuple(map(int, caption.split())) for caption in captions]
        return torch.stack([draw(side ^ (seed == 1), tone) for side, tone in pairs])

    options = {"count": 40, "guidance": 1.0, "seeds": [0, 1, 2]}
    found = score_captions(perfect, torch.clone, judge, held_out, **options)
    assert found.all_right.values == (1.0, 1.0, 1.0)
    assert found.num_images == 40
    assert set(found.real.values()) == set(found.reconstructed.values()) == {1.0}
    dark = score_captions(perfect, torch.zeros_like, judge, held_out, **options)
    assert dark.reconstructed[ALL] < 0.7
    found = score_captions(wrong_side_on_seed_1, torch.clone, judge, held_out, **options)
    assert found.all_right.values == (1.0, 0.0, 1.0)
    assert found.all_right.median == 1.0
    assert found.by_attribute["side"].values == (1.0, 0.0, 1.0)
    assert found.by_attribute["tone"].values == (1.0, 1.0, 1.0)
    assert found.to_json()["by_attribute"]["side"]["values"] == (1.0, 0.0, 1.0)
    assert "side: 100.0% right (0.0% to 100.0%" in "\n".join(found.summary())


def test_attributes_are_the_wanted_ones_or_all():
    assert choose_attributes([], SIZES) == ("side", "tone")
    assert choose_attributes(["tone"], SIZES) == ("tone",)
    with refused(ConfigError, "--attributes tone,hue", "hue"):
        choose_attributes(["tone", "hue"], SIZES)


def test_the_judge_is_trained_once_a_corpus(sample_shards, tmp_path):
    data = DataConfig(train=f"{sample_shards.file}/train", image_size=16)
    said: list[str] = []
    options = {"steps": 2, "report": said.append}
    first = load_or_train_attribute_judge(data, ["shape", "hue"], tmp_path, **options)
    (path,) = tmp_path.glob("attributes-*.safetensors")
    assert not any("kept" in line for line in said)
    again = load_or_train_attribute_judge(data, ["shape", "hue"], tmp_path, **options)
    assert any(f"{path} kept" in line for line in said)
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    expected, found = predict(first, images), predict(again, images)
    assert all(torch.equal(expected[name], found[name]) for name in ("shape", "hue"))
    load_or_train_attribute_judge(data, ["hue"], tmp_path, **options)
    load_or_train_attribute_judge(data, ["shape", "hue"], tmp_path, steps=1)
    assert len(list(tmp_path.glob("attributes-*.safetensors"))) == 3, "others are judges apart"
    for junk in (b"junk", path.read_bytes()[:-10]):
        path.write_bytes(junk)
        said.clear()
        load_or_train_attribute_judge(data, ["shape", "hue"], tmp_path, **options)
        assert not any("kept" in line for line in said), "a damaged one is trained again"
