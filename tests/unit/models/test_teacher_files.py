"""What a teacher's path may hold, and the one line for what it may not."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTConfig

from gear_dist.config.loading import load_config
from gear_dist.config.models import TeacherConfig
from gear_dist.errors import ConfigError
from gear_dist.models.teachers import load_teacher, load_teachers
from gear_dist.models.teachers.encoder_files import UnreachableError
from refusals import refused
from tiny_encoders import LAYOUTS, WIDTH, save_encoder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    for layout in LAYOUTS:
        save_encoder(root / layout, layout)
    return root


def refuses(*needles, kind=ConfigError, **settings):
    config = TeacherConfig(**{"name": "dinov2"} | settings)
    with refused(kind, *needles):
        load_teacher(config, image_size=32, grid_size=4, setting="more_teachers.b")


def go_offline(monkeypatch):
    """As a user would be: the hub's library reads this when it is imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("dinov2", "dinov3"),
        ("dinov3", "dinov2-with-registers"),
        ("clip", "siglip2"),
        ("siglip2", "clip"),
        ("vjepa2", "siglip2-naflex"),
        ("dinov2", "vjepa2"),
    ],
)
def test_another_family_is_named(folders, name, layout):
    right = layout.removesuffix("-with-registers").removesuffix("-naflex")
    place, setting = f"more_teachers.b.path={folders / layout}", "more_teachers.b.name"
    needles = (place, f"{setting}={name}", f"{setting}={right}")
    refuses(*needles, name=name, path=str(folders / layout))


def test_an_unknown_architecture_names_a_model_of_the_family(tmp_path):
    ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path)
    place = f"more_teachers.b.path={tmp_path}"
    refuses(place, "'vit'", "facebook/dinov2-small", path=str(tmp_path))


def test_places_where_nothing_is(tmp_path, monkeypatch):
    setting = "more_teachers.b.path"
    refuses(f"{setting}=/nowhere/at-all", "config.json", path="/nowhere/at-all")
    refuses(f"{setting}=''", path="")
    file = tmp_path / "file.safetensors"
    file.write_bytes(b"")
    refuses(f"{setting}={file}", "config.json", path=str(file))
    refuses(f"{setting}={tmp_path}", "config.json", kind=UnreachableError, path=str(tmp_path))
    go_offline(monkeypatch)
    needles = (f"{setting}=some-owner/no-model", "HF_HUB_OFFLINE", "more_teachers.b.name=convnet")
    refuses(*needles, kind=UnreachableError, path="some-owner/no-model")


def test_a_hub_name_is_found_in_the_hubs_cache_offline(tmp_path):
    """Another process: the hub's library reads its settings when it is imported."""
    repository = tmp_path / "hub" / "models--some-owner--tiny-clip"
    save_encoder(repository / "snapshots" / "abc", "clip")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    code = (
        "from gear_dist.config.models import TeacherConfig\n"
        "from gear_dist.models.teachers import load_teacher\n"
        "config = TeacherConfig(name='clip', path='some-owner/tiny-clip')\n"
        "print(load_teacher(config, image_size=32, grid_size=4).width)"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, f"{WIDTH}\n", "")


def test_config_without_weights_and_pickles_are_refused(folders, tmp_path):
    (tmp_path / "config.json").write_text((folders / "clip" / "config.json").read_text())
    needles = (f"more_teachers.b.path={tmp_path}", "model.safetensors", "HF_HUB_OFFLINE")
    refuses(*needles, kind=UnreachableError, name="clip", path=str(tmp_path))
    torch.save(load_file(folders / "clip" / "model.safetensors"), tmp_path / "pytorch_model.bin")
    refuses(*needles, kind=UnreachableError, name="clip", path=str(tmp_path))


@pytest.mark.parametrize("layout", ["dinov2", "siglip2", "vjepa2"])
def test_weights_that_lack_or_change_a_tensor_are_refused(folders, tmp_path, layout):
    """The library would take random ones and warn."""
    config = (folders / layout / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    weights = load_file(folders / layout / "model.safetensors")
    name = next(n for n in weights if "2" in n and n.endswith("bias") and "text" not in n)
    changed = {key: value for key, value in weights.items() if key != name}
    save_file(changed, tmp_path / "model.safetensors", {"format": "pt"})
    without_tower = name.removeprefix("vision_model.")
    needles = (f"more_teachers.b.path={tmp_path}", "1 weights", without_tower)
    refuses(*needles, name=layout, path=str(tmp_path))
    changed[name] = torch.zeros(5)
    save_file(changed, tmp_path / "model.safetensors", {"format": "pt"})
    refuses(*needles, "shapes", name=layout, path=str(tmp_path))


def test_damaged_files_are_refused(folders, tmp_path):
    source = folders / "dinov3"
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    data = (source / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: len(data) // 2])
    place = f"more_teachers.b.path={tmp_path}"
    refuses(place, "damaged", name="dinov3", path=str(tmp_path))
    facts = json.loads((source / "config.json").read_text()) | {"hidden_size": "wide"}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    refuses(place, "damaged", "hidden_size", name="dinov3", path=str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    broken = tmp_path / "config.json"
    refuses(place, broken, kind=UnreachableError, name="dinov3", path=str(tmp_path))


def test_sizes_that_do_not_fit(folders, tmp_path):
    path = str(folders / "siglip2")
    refuses("more_teachers.b.block=4", path, "3 blocks", name="siglip2", path=path, block=4)
    facts = json.loads((folders / "dinov2" / "config.json").read_text()) | {"patch_size": 16}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    place, name = f"more_teachers.b.path={tmp_path}", "more_teachers.b.name=dinov2"
    refuses(place, "patch size 16", name, 14, path=str(tmp_path))
    block, name = "more_teachers.b.block=1", "more_teachers.b.name=convnet"
    refuses(block, name, "use 0", name="convnet", path="x", block=1)


def test_a_single_position_has_no_standard_deviation(folders):
    config = TeacherConfig(name="clip", path=str(folders / "clip"))
    with refused(ConfigError, "teacher.normalisation=auto", "use none"):
        load_teacher(config, image_size=16, grid_size=1)


def test_errors_name_the_section_of_the_teacher(folders):
    words = ["teacher.name=clip", f"teacher.path={folders / 'clip'}"]
    config = load_config(None, [*words, "more_teachers.other.path=./absent"])
    with refused(ConfigError, "more_teachers.other.path=./absent", "config.json"):
        load_teachers(
            config.teachers, image_size=config.data.image_size, grid_size=config.grid_size
        )
