"""Key names, shapes and parameter counts of the published models, on the meta device."""

import pytest
import torch
from torch import nn

from gear_dist.config.models import DiscriminatorConfig
from gear_dist.config.schema import RunConfig
from gear_dist.models.discriminator.patchgan import PatchDiscriminator
from gear_dist.models.generator import build_generator
from gear_dist.models.tokenizers import build_tokenizer
from public_layouts import GENERATORS, TOKENIZERS, read_layout


def assert_has_layout(module: nn.Module, name: str) -> None:
    parameters, shapes = read_layout(name)
    assert {key: tuple(value.shape) for key, value in module.state_dict().items()} == shapes
    assert sum(p.numel() for p in module.parameters()) == parameters


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers(name):
    with torch.device("meta"):
        assert_has_layout(build_tokenizer(TOKENIZERS[name]), name)


@pytest.mark.parametrize("name", GENERATORS)
def test_class_conditional_generators(name):
    with torch.device("meta"):
        assert_has_layout(build_generator(RunConfig(generator=GENERATORS[name])), name)


def test_discriminator():
    with torch.device("meta"):
        assert_has_layout(PatchDiscriminator(DiscriminatorConfig()), "discriminator")
