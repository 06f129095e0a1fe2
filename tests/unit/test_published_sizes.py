"""Key names and parameter counts of the published models, on the meta device."""

import pytest
import torch

from gear_dist.config import DiscriminatorConfig, GeneratorConfig, RunConfig, TokenizerConfig
from gear_dist.generator import build_generator
from gear_dist.losses.adversarial import PatchDiscriminator
from gear_dist.tokenizers import build_tokenizer


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("multipliers", "parameters"), [((1, 1, 2, 2, 4), 71_883_403), ((1, 2, 2, 4), 70_109_835)]
)
def test_vq_tokenizers(multipliers, parameters):
    with torch.device("meta"):
        tokenizer = build_tokenizer(TokenizerConfig(channel_multipliers=multipliers))
    assert count(tokenizer) == parameters
    names = tokenizer.state_dict()
    assert names["quantize.embedding.weight"].shape == (16384, 8)
    assert names["encoder.conv_blocks.0.downsample.conv.weight"].shape == (128, 128, 3, 3)
    assert "decoder.conv_blocks.0.attn.2.proj_out.weight" in names


@pytest.mark.parametrize(
    ("layers", "width", "heads", "parameters"),
    [
        (12, 384, 6, 34_210_560),
        (12, 768, 12, 110_888_448),
        (24, 1024, 16, 342_910_976),
        (36, 1280, 20, 774_699_520),
        (48, 1536, 24, 1_410_972_672),
        (48, 2560, 40, 3_893_027_840),
    ],
)
def test_class_conditional_generators(layers, width, heads, parameters):
    config = GeneratorConfig(width=width, num_layers=layers, num_heads=heads)
    with torch.device("meta"):
        generator = build_generator(RunConfig(generator=config))
    assert count(generator) == parameters


def test_discriminator():
    with torch.device("meta"):
        assert count(PatchDiscriminator(DiscriminatorConfig())) == 2_765_633
