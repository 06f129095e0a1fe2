"""DINOv2 teacher: its input, its position embeddings, its features, and what it refuses."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model, ViTConfig

from gear_dist.config import TeacherConfig
from gear_dist.errors import ConfigError
from gear_dist.teachers import load_teacher, normalise_features
from gear_dist.teachers.dinov2 import dinov2_input, resample_positions
from reference_numbers import assert_close, read_reference

WIDTH = 24


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random DINOv2 for 5 x 5 patches."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, image_size=70, patch_size=14
    )
    model = Dinov2Model(config)
    # Zero-initialised embeddings would hide how they are resampled.
    torch.nn.init.normal_(model.embeddings.position_embeddings)
    folder = tmp_path_factory.mktemp("dinov2")
    model.save_pretrained(folder)
    return folder


def load(path: Path | str, image_size: int = 32, grid_size: int = 2):
    config = TeacherConfig(name="dinov2", path=str(path))
    return load_teacher(config, image_size=image_size, grid_size=grid_size)


def test_input_matches_reference():
    _, tensors = read_reference("teacher")
    images = tensors["image"].float() / 127.5 - 1
    assert_close(dinov2_input(images, 2), tensors["dinov2_input"], 1e-6, "dinov2_input")


@pytest.mark.parametrize("mode", ["demean", "zscore"])
def test_spatial_normalisation_matches_reference(mode: str):
    _, tensors = read_reference("teacher")
    assert_close(normalise_features(tensors["features"], mode), tensors[mode], 1e-6, mode)


def test_no_normalisation_changes_nothing_and_unknown_one_is_refused():
    features = torch.randn(2, 4, 3)
    assert torch.equal(normalise_features(features, "none"), features)
    with pytest.raises(ValueError, match="use none, demean or zscore"):
        normalise_features(features, "whiten")


@pytest.mark.parametrize(("image_size", "grid_size"), [(32, 5), (80, 5), (64, 3)])
def test_features_are_patch_tokens_after_the_final_norm(dinov2_folder, image_size, grid_size):
    teacher = load(dinov2_folder, image_size, grid_size)
    images = torch.rand(2, 3, image_size, image_size) * 2 - 1
    features = teacher(images)
    assert features.shape == (2, grid_size**2, WIDTH)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert teacher.width == WIDTH
    if grid_size == 5:  # the model's own grid: transformers' forward is the truth
        model = Dinov2Model.from_pretrained(dinov2_folder).eval()
        with torch.no_grad():
            pixels = dinov2_input(images, 5)
            embedded = model.embeddings(pixels)
            truth = model.layernorm(model.encoder(embedded).last_hidden_state)[:, 1:]
        torch.testing.assert_close(features, truth)


def test_position_embeddings_are_resampled_to_the_grid():
    positions = torch.randn(1, 1 + 36, 4)
    smaller = resample_positions(positions, 3)
    assert smaller.shape == (1, 10, 4)
    assert torch.equal(smaller[:, 0], positions[:, 0])
    constant = torch.cat([positions[:, :1], torch.full((1, 36, 4), 2.5)], dim=1)
    torch.testing.assert_close(resample_positions(constant, 4)[:, 1:], torch.full((1, 16, 4), 2.5))
    ramp = torch.arange(6.0).repeat_interleave(6)[None, :, None].expand(1, 36, 4)
    rows = resample_positions(torch.cat([positions[:, :1], ramp], dim=1), 3)[0, 1:, 0].view(3, 3)
    torch.testing.assert_close(rows[:, 0], rows[:, 2])
    assert rows[0, 0] < rows[1, 0] < rows[2, 0]  # rows stay rows: raster order
    torch.testing.assert_close(rows[1, 0], torch.tensor(2.5))
    assert resample_positions(positions, 6) is positions


def test_teacher_stays_frozen_and_in_evaluation_mode(dinov2_folder):
    teacher = load(dinov2_folder)
    parent = torch.nn.Sequential(teacher).train()
    assert parent.training
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_wrong_image_size_is_refused(dinov2_folder):
    with pytest.raises(ValueError, match=r"images \(B, 3, 32, 32\), got \(1, 3, 16, 16\)"):
        load(dinov2_folder)(torch.zeros(1, 3, 16, 16))


def test_unreachable_weights_name_the_setting(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"teacher\.path=/nowhere/at-all: no such folder"):
        load("/nowhere/at-all")
    with pytest.raises(ConfigError, match=r"teacher\.path=.*not reachable"):
        load(tmp_path)
    # Offline as a user would be: the hub's library reads this when it is imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)
    with pytest.raises(ConfigError, match=r"teacher\.path=some-owner/no-model: .*not reachable"):
        load("some-owner/no-model")


def test_another_architecture_is_refused(tmp_path):
    ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"holds a 'vit' model"):
        load(tmp_path)


def test_torchvision_is_not_needed(dinov2_folder):
    load(dinov2_folder)
    assert "torchvision" not in sys.modules
