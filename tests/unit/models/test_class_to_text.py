"""Class-conditional weights as the beginning of a text-to-image generator."""

import dataclasses

import pytest
import torch

from gear_dist.config.compare import differing_architecture
from gear_dist.config.loading import load_config
from gear_dist.config.models import GeneratorConfig
from gear_dist.config.training import INIT_NETWORKS
from gear_dist.errors import ConfigError
from gear_dist.inference.model_folder import create_model_folder, write_model_config
from gear_dist.inference.weights import write_weights
from gear_dist.models.generator import TextCondition, TextGenerator, build_generator
from gear_dist.models.generator.class_to_text import CLASS_TABLE, text_state
from gear_dist.models.tokenizers import build_tokenizer
from gear_dist.training.init_from import load_init_from
from refusals import refused

SIZES = ["generator.width=16", "generator.num_layers=3", "generator.num_heads=2"]
SMALL = [
    "tokenizer.channels=8",
    "tokenizer.channel_multipliers=[1]",
    "tokenizer.num_res_blocks=1",
    "tokenizer.latent_channels=8",
    "tokenizer.norm_groups=4",
    "tokenizer.codebook_size=16",
    "data.image_size=4",
    "generator.tap_layer=1",
    "generator.num_classes=5",
]


@pytest.fixture
def folder(tmp_path):
    """A model folder with a tokenizer and a class-conditional generator."""
    config = load_config(None, [*SIZES, *SMALL])
    torch.manual_seed(0)
    networks = {
        "tokenizer": build_tokenizer(config.tokenizer),
        "generator": build_generator(config),
    }
    create_model_folder(tmp_path / "classes")
    for name, network in networks.items():
        write_weights(tmp_path / "classes" / f"{name}.safetensors", network.state_dict(), {})
    write_model_config(tmp_path / "classes", config, networks)
    return tmp_path / "classes"


def text_run(folder, *overrides: str):
    words = ["generator.condition=text", "generator.text_width=6", f"stages.init_from={folder}"]
    return load_config(None, [*words, *overrides])


def test_what_both_have_is_copied(folder):
    config = text_run(folder)
    assert config.generator.width == 16, "sizes are those of the folder"
    states = load_init_from(config)
    state = {key.removeprefix("generator."): v for key, v in states["generator"].items()}
    generator = build_generator(config)
    assert isinstance(generator, TextGenerator)
    generator.load_state_dict(state)
    classes = build_generator(load_config(folder / "config.json"))
    assert CLASS_TABLE in classes.state_dict()
    assert CLASS_TABLE not in state
    layer = generator.layers[0].attention
    assert torch.equal(layer.wqkv_text.weight, layer.wqkv.weight)
    assert torch.equal(
        load_init_from(config)["generator"]["generator.cls_embedding.cap_proj.fc1.weight"],
        state["cls_embedding.cap_proj.fc1.weight"],
    ), "by the seed"
    condition = TextCondition(torch.zeros(2, 6), (2,), (False,), torch.zeros(1, 6), False)
    assert generator.logits(torch.zeros(1, 3, dtype=torch.int64), condition).shape == (1, 4, 16)


def test_other_sizes_are_refused(folder):
    with refused(ConfigError, "generator.width=32", 16):
        load_init_from(text_run(folder, "generator.width=32"))


def test_captions_do_not_become_classes(tmp_path):
    text = load_config(None, ["generator.condition=text"])
    classes = load_config(None, [])
    assert differing_architecture("generator", text, classes) == []
    [differing] = differing_architecture("generator", classes, text)
    assert "generator.condition=class" in differing
    masks = load_config(None, ["generator.condition=text", "generator.text_mask=prefix"])
    [differing] = differing_architecture("generator", text, masks)
    assert "text_mask" in differing
    assert not any(differing_architecture(name, text, masks) for name in INIT_NETWORKS[:2])


def test_text_weights_stay_as_they_are():
    config = dataclasses.replace(GeneratorConfig(), condition="text")
    state = {"norm.weight": torch.ones(2)}
    assert text_state(state, config, 0) == state
