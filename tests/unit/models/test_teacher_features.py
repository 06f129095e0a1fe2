"""What encoders are given and what is made of their features, against reference numbers."""

import pytest
import torch

from gear_dist.errors import ConfigError
from gear_dist.models.teachers import normalise_features
from gear_dist.models.teachers.encoder import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EncoderInput,
    resample_positions,
)
from reference_numbers import assert_close, read_reference
from refusals import refused


def test_input_matches_reference():
    _, tensors = read_reference("teacher")
    images = tensors["image"].float() / 127.5 - 1
    pixels = EncoderInput(28, IMAGENET_MEAN, IMAGENET_STD)(images)
    assert_close(pixels, tensors["dinov2_input"], 1e-6, "dinov2_input")


@pytest.mark.parametrize("mode", ["demean", "zscore"])
def test_spatial_normalisation_matches_reference(mode: str):
    _, tensors = read_reference("teacher")
    assert_close(normalise_features(tensors["features"], mode), tensors[mode], 1e-6, mode)


def test_no_normalisation_changes_nothing_and_unknown_one_is_refused():
    features = torch.randn(2, 4, 3)
    assert torch.equal(normalise_features(features, "none"), features)
    with refused(ValueError, "'whiten'", "none", "demean", "zscore"):
        normalise_features(features, "whiten")


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_position_embeddings_are_resampled_to_the_grid(mode: str):
    positions = torch.randn(1 + 36, 4)
    smaller = resample_positions(positions, 3, num_other=1, mode=mode)
    assert smaller.shape == (10, 4)
    assert torch.equal(smaller[0], positions[0])
    constant = torch.full((36, 4), 2.5)
    torch.testing.assert_close(resample_positions(constant, 4, mode=mode), constant[:16])
    ramp = torch.arange(6.0).repeat_interleave(6)[:, None].expand(36, 4)
    rows = resample_positions(ramp, 3, mode=mode)[:, 0].view(3, 3)
    torch.testing.assert_close(rows[:, 0], rows[:, 2])
    assert rows[0, 0] < rows[1, 0] < rows[2, 0]  # rows stay rows: raster order
    torch.testing.assert_close(rows[1, 0], torch.tensor(2.5))
    assert resample_positions(positions, 6, num_other=1) is positions
    with refused(ConfigError, "teacher", "37 position embeddings", "square"):
        resample_positions(positions, 3)
