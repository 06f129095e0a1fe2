"""The convolutional teacher: its shapes, its training, its file, its command."""

import json
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from gear_dist.cli.main import main
from gear_dist.config.models import TeacherConfig
from gear_dist.data.labelled import LabelledImages
from gear_dist.errors import ConfigError
from gear_dist.models.teachers import TEACHERS, load_teacher
from gear_dist.models.teachers.convnet import (
    WIDTH,
    ConvNet,
    ConvNetTeacher,
    TeacherRecipe,
    train_convnet,
)
from refusals import refused

RECIPE = TeacherRecipe(image_size=16, grid_size=4, steps=140, batch=16, seed=0, plan_hash="p")


def striped_images(count: int = 96) -> LabelledImages:
    """Class: direction of stripes; attribute: dark or light."""
    random = torch.Generator().manual_seed(0)
    labels, tone = torch.randint(0, 2, (2, count), generator=random)
    stripes = ((torch.arange(16) // 2) % 2).float().expand(count, 3, 16, 16)
    upright = labels.view(-1, 1, 1, 1) == 0
    level = 40 + 120 * tone.view(-1, 1, 1, 1)
    images = torch.where(upright, stripes, stripes.mT) * 60 + level
    images += torch.randint(0, 20, images.shape, generator=random)
    return LabelledImages(
        images=images.to(torch.uint8),
        labels=labels,
        attributes={"tone": tone},
        num_classes=2,
        attribute_sizes={"tone": 2},
        plan_hash="p",
        num_sources=count,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "deep" / "teacher.safetensors"
    data = striped_images()
    metadata = train_convnet(data, RECIPE, path, seconds=60, held_out=data)
    # Chance is 0.5. Mostly both are 1, but how a short training ends depends on the rounding.
    assert metadata["held_out_accuracy"]["class"] > 0.75
    assert metadata["held_out_accuracy"]["tone"] > 0.75
    return path


def load(path: Path | str, image_size: int = 16, grid_size: int = 4):
    config = TeacherConfig(name="convnet", path=str(path))
    return load_teacher(config, image_size=image_size, grid_size=grid_size)


@pytest.mark.parametrize(
    ("image_size", "grid_size"), [(32, 8), (64, 8), (64, 16), (16, 8), (48, 3), (128, 8)]
)
def test_features_lie_on_the_grid_in_raster_order(image_size, grid_size):
    torch.manual_seed(0)
    net = ConvNet(image_size=image_size, grid_size=grid_size, head_sizes={"class": 3})
    teacher = ConvNetTeacher(net, image_size=image_size, grid_size=grid_size)
    images = torch.zeros(1, 3, image_size, image_size)
    features = teacher(images)
    assert features.shape == (1, grid_size**2, WIDTH)
    assert features.dtype == torch.float32
    # A mark at the right end of the top row moves that position more than its mirror image.
    side = image_size // grid_size
    images[:, :, :side, -side:] = 1
    moved = (teacher(images) - features).norm(dim=-1)[0]
    assert moved[grid_size - 1] > 1.2 * moved[-grid_size]
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_parameters_are_about_half_a_million():
    net = ConvNet(image_size=32, grid_size=8, head_sizes={"class": 16})
    assert 0.4e6 < sum(parameter.numel() for parameter in net.parameters()) < 0.7e6


@pytest.mark.parametrize(("image_size", "grid_size"), [(48, 16), (32, 32), (32, 5), (32, 0)])
def test_impossible_strides_are_refused(image_size, grid_size):
    with refused(ConfigError, "teacher.name=convnet", image_size, grid_size):
        ConvNet(image_size=image_size, grid_size=grid_size, head_sizes={})


def test_file_gives_back_the_trained_features(trained):
    teacher = load(trained)
    data = striped_images()
    images = data.images.float() / 127.5 - 1
    features = teacher(images)
    with safe_open(trained, framework="pt") as file:
        metadata = json.loads(file.metadata()["facts"])
        head = {name: file.get_tensor(f"heads.class.{name}") for name in ("weight", "bias")}
    pooled = torch.relu(features).mean(dim=1)
    logits = nn.functional.linear(pooled, head["weight"], head["bias"])
    accuracy = (logits.argmax(1) == data.labels).float().mean().item()
    assert accuracy == pytest.approx(metadata["held_out_accuracy"]["class"], abs=0.03)
    assert metadata["plan_hash"] == "p"
    assert metadata["steps_done"] == RECIPE.steps
    assert metadata["head_sizes"] == {"class": 2, "tone": 2}


def test_wrong_files_and_sizes_are_refused_with_the_fix(trained, tmp_path):
    with refused(ConfigError, "teacher.path=absent", "file", "gear-dist teacher"):
        load("absent")
    with refused(
        ConfigError, f"teacher.path={trained}", "16-pixel", 4, "--image-size 32 --grid-size 8"
    ):
        load(trained, 32, 8)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(trained.read_bytes()[:-100])
    with refused(ConfigError, f"teacher.path={cut}", "file", "gear-dist teacher"):
        load(cut)
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, other, {"facts": '{"kind": "classifier"}'})
    with refused(ConfigError, f"teacher.path={other}", "'classifier'", "gear-dist teacher"):
        load(other)


def test_another_file_is_not_overwritten(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with refused(ConfigError, path, "overwritten"):
        train_convnet(striped_images(16), RECIPE._replace(steps=1), path, seconds=9)
    assert path.read_text() == "mine"


def test_seconds_end_the_training(tmp_path):
    recipe = RECIPE._replace(steps=100_000)
    metadata = train_convnet(striped_images(), recipe, tmp_path / "t.safetensors", seconds=0.5)
    assert 1 <= metadata["steps_done"] < 100_000


def test_few_images_with_unknown_targets_are_enough(tmp_path):
    data = striped_images(3)
    data.attributes["tone"].fill_(-1)
    metadata = train_convnet(data, RECIPE._replace(steps=3), tmp_path / "t.safetensors", seconds=9)
    assert metadata["steps_done"] == 3
    features = load(tmp_path / "t.safetensors")(torch.zeros(1, 3, 16, 16))
    assert features.isfinite().all()


def test_command_trains_once_and_keeps_what_matches(sample_shards, tmp_path, capsys):
    out = tmp_path / "teacher.safetensors"
    command = ["teacher", sample_shards.s3 + "/train", "--out", str(out), "--threads", "1"]
    command += ["--steps", "4", "--batch", "16", "--seconds", "60"]
    assert main([*command, "--validation", sample_shards.file + "/validation"]) == 0
    text = capsys.readouterr().out
    assert "192 images; learns 16 classes, " in text
    assert "held-out accuracy: class 0." in text
    load(out, 32, 8)
    first = out.stat().st_mtime_ns
    assert main(command) == 0
    assert "kept" in capsys.readouterr().out
    assert out.stat().st_mtime_ns == first
    assert main([*command, "--seed", "1"]) == 0
    assert out.stat().st_mtime_ns != first


@pytest.mark.parametrize(
    ("extra", "code", "message"),
    [
        (["--grid-size", "7"], 2, "grid size 7"),
        (["--steps", "0"], 2, "--steps 0 is too small"),
        (["--seconds", "nan"], 2, "--seconds nan"),
        (["--out", "."], 2, "--out . is a folder"),
    ],
)
def test_command_refuses_bad_settings(sample_shards, tmp_path, capsys, extra, code, message):
    out = ["--out", str(tmp_path / "t.safetensors")]
    assert main(["teacher", sample_shards.file + "/train", *out, *extra]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_held_out_corpus_without_the_attributes_is_measured_on_the_rest(tmp_path):
    plain = striped_images()._replace(attributes={}, attribute_sizes={})
    recipe = RECIPE._replace(steps=2)
    path = tmp_path / "t.safetensors"
    metadata = train_convnet(striped_images(), recipe, path, seconds=9, held_out=plain)
    assert set(metadata["held_out_accuracy"]) == {"class"}


def test_command_names_a_missing_corpus(tmp_path, capsys):
    out = tmp_path / "t.safetensors"
    assert main(["teacher", str(tmp_path / "none"), "--out", str(out)]) == 3
    assert "no sharded corpus is there" in capsys.readouterr().err


def test_every_teacher_of_the_configuration_is_registered():
    names = typing.get_args(typing.get_type_hints(TeacherConfig)["name"])
    assert sorted(names) == sorted(TEACHERS)
    with pytest.raises(ImportError, match="no_such"):
        from gear_dist.models.teachers import no_such  # noqa: F401


def test_registry_and_command_do_not_import_torch():
    rooms = "gear_dist.cli.teacher, gear_dist.cli.evaluate"
    code = f"import sys, {rooms}; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
