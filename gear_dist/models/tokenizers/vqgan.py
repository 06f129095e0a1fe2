"""Encoder and decoder of the VQ and IBQ tokenizers: the same blocks under two sets of key names.

Shapes: B images, H x W pixels, f downsampling. Source: arXiv 2406.06525; 2412.02692.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from gear_dist.config.models import TokenizerConfig
from gear_dist.models.tokenizers.blocks import (
    AttentionBlock,
    Downsample,
    GroupNorm,
    Level,
    ResidualBlock,
    Upsample,
)


class KeyNames(NamedTuple):
    """How a family of public checkpoints names the parts."""

    encoder_levels: str
    decoder_levels: str
    blocks: str
    middle: tuple[str, str, str]
    lowest_resolution_first: bool
    """Order in which the decoder's levels are stored; the encoder's start at the highest."""


VQ_KEYS = KeyNames("conv_blocks", "conv_blocks", "res", ("0", "1", "2"), True)
IBQ_KEYS = KeyNames("down", "up", "block", ("block_1", "attn_1", "block_2"), False)


class Encoder(nn.Module):
    """Images (B, 3, H, W) -> latents (B, latent_channels, H / f, W / f)."""

    def __init__(self, config: TokenizerConfig, keys: KeyNames):
        super().__init__()
        widths, last = config.level_channels, config.num_levels - 1
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        levels = (
            Level(
                [config.channels if i == 0 else widths[i - 1]] + [width] * config.num_res_blocks,
                config,
                keys.blocks,
                attention=config.has_attention(i),
                resampling=("downsample", Downsample) if i < last else None,
            )
            for i, width in enumerate(widths)
        )
        self.levels_key = keys.encoder_levels
        self.add_module(self.levels_key, nn.ModuleList(levels))
        self.mid = _middle(widths[-1], config, keys)
        self.norm_out = GroupNorm(config.norm_groups, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.get_submodule(self.levels_key).children():
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latents (B, latent_channels, H / f, W / f) -> images (B, 3, H, W)."""

    def __init__(self, config: TokenizerConfig, keys: KeyNames):
        super().__init__()
        widths, last = config.level_channels, config.num_levels - 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = _middle(widths[-1], config, keys)
        stored = range(len(widths))
        self.levels_key = keys.decoder_levels
        self.lowest_resolution_first = keys.lowest_resolution_first
        levels = (
            Level(
                [widths[min(i + 1, last)]] + [widths[i]] * config.num_decoder_blocks,
                config,
                keys.blocks,
                attention=config.has_attention(i),
                resampling=("upsample", Upsample) if i > 0 else None,
            )
            for i in (reversed(stored) if self.lowest_resolution_first else stored)
        )
        self.add_module(self.levels_key, nn.ModuleList(levels))
        self.norm_out = GroupNorm(config.norm_groups, widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        levels = list(self.get_submodule(self.levels_key).children())
        for level in levels if self.lowest_resolution_first else reversed(levels):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


def _middle(channels: int, config: TokenizerConfig, keys: KeyNames) -> nn.Sequential:
    middle = nn.Sequential()
    middle.add_module(keys.middle[0], ResidualBlock(channels, channels, config))
    middle.add_module(keys.middle[1], AttentionBlock(channels, config))
    middle.add_module(keys.middle[2], ResidualBlock(channels, channels, config))
    return middle
