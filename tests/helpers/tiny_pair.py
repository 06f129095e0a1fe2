"""A pair of networks at random weights, small enough to sample in a moment, as a model folder."""

from pathlib import Path

import torch

from gear_dist.config.loading import load_config
from gear_dist.config.schema import RunConfig
from gear_dist.inference.model_folder import create_model_folder, write_model_config
from gear_dist.inference.weights import write_weights
from gear_dist.models.generator import build_generator
from gear_dist.models.tokenizers import build_tokenizer

NUM_CLASSES = 4
SETTINGS = (
    "data.image_size=16",
    "tokenizer.codebook_size=32",
    "tokenizer.code_width=4",
    "tokenizer.channels=8",
    "tokenizer.channel_multipliers=[1,1,1]",
    "tokenizer.num_res_blocks=1",
    "tokenizer.latent_channels=8",
    "tokenizer.norm_groups=4",
    "generator.width=32",
    "generator.num_layers=2",
    "generator.num_heads=2",
    f"generator.num_classes={NUM_CLASSES}",
    "generator.tap_layer=1",
    "discriminator.width=8",
)
"""16 tokens of 32 codes."""


def make_tiny_pair(folder: Path, *overrides: str, seed: int = 0) -> RunConfig:
    """Write the folder; the configuration of its networks."""
    config = load_config(None, [*SETTINGS, *overrides])
    torch.manual_seed(seed)
    tokenizer, generator = build_tokenizer(config.tokenizer), build_generator(config)
    # A head of zeros, as it is initialised, would draw every code alike.
    torch.nn.init.normal_(generator.output.weight, std=0.5)
    create_model_folder(folder)
    networks = {"tokenizer": tokenizer, "generator": generator}
    for name, network in networks.items():
        write_weights(folder / f"{name}.safetensors", network.state_dict(), {})
    write_model_config(folder, config, networks)
    return config
