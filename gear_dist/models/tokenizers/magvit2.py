"""Encoder and decoder of the LFQ tokenizer: no attention, adaptive group norm in the decoder.

Shapes: B images, C code width, h x w token grid, f downsampling. Source: arXiv 2409.04410.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from gear_dist.config.models import TokenizerConfig
from gear_dist.models.tokenizers.blocks import NORM_EPS, GroupNorm, Level, ResidualBlock

BLOCKS_KEY = "block"


class DepthToSpace(nn.Module):
    """Doubles the resolution: a 3x3 convolution to (dy, dx, c) channels, then a shuffle."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, rows, columns = x.shape
        parts = self.conv1(x).reshape(batch, 2, 2, channels, rows, columns)
        return parts.permute(0, 3, 4, 1, 5, 2).reshape(batch, channels, 2 * rows, 2 * columns)


class AdaptiveGroupNorm(nn.Module):
    """gamma(deviation) * norm(x) + beta(mean), statistics of the quantised latent's channels.

    The deviation is sqrt(unbiased variance + 1e-6) over the positions, of which there must be two.
    """

    def __init__(self, channels: int, config: TokenizerConfig):
        super().__init__()
        self.norm = GroupNorm(config.norm_groups, channels, affine=False)
        self.gamma = nn.Linear(config.code_width, channels)
        self.beta = nn.Linear(config.code_width, channels)

    def forward(self, x: Tensor, latent_BChw: Tensor) -> Tensor:
        positions = latent_BChw.flatten(2).float()
        deviation_BC = (positions.var(dim=2) + NORM_EPS).sqrt()
        scale = self.gamma(deviation_BC)[:, :, None, None]
        shift = self.beta(positions.mean(dim=2))[:, :, None, None]
        return scale * self.norm(x) + shift


class Encoder(nn.Module):
    """Images (B, 3, H, W) -> latents (B, C, H / f, W / f)."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        widths, last = config.level_channels, config.num_levels - 1
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1, bias=False)
        self.down = nn.ModuleList(
            Level(
                [config.channels if i == 0 else widths[i - 1]] + [width] * config.num_res_blocks,
                config,
                BLOCKS_KEY,
                bias=False,
                resampling=("downsample", _strided) if i < last else None,
            )
            for i, width in enumerate(widths)
        )
        self.mid_block = _middle(widths[-1], config)
        self.norm_out = GroupNorm(config.norm_groups, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.code_width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Quantised latents (B, C, H / f, W / f) -> images (B, 3, H, W)."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        widths, last = config.level_channels, config.num_levels - 1
        entries = [widths[min(i + 1, last)] for i in range(len(widths))]
        self.conv_in = nn.Conv2d(config.code_width, widths[-1], 3, padding=1)
        self.mid_block = _middle(widths[-1], config)
        self.up = nn.ModuleList(
            Level(
                [entries[i]] + [width] * config.num_decoder_blocks,
                config,
                BLOCKS_KEY,
                bias=False,
                resampling=("upsample", DepthToSpace) if i > 0 else None,
            )
            for i, width in enumerate(widths)
        )
        self.adaptive = nn.ModuleList(AdaptiveGroupNorm(width, config) for width in entries)
        self.norm_out = GroupNorm(config.norm_groups, widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z_BChw: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z_BChw))
        for norm, level in zip(reversed(self.adaptive), reversed(self.up), strict=True):
            x = level(norm(x, z_BChw))
        return self.conv_out(F.silu(self.norm_out(x)))


def _middle(channels: int, config: TokenizerConfig) -> nn.Sequential:
    count = config.num_middle_blocks
    return nn.Sequential(
        *(ResidualBlock(channels, channels, config, bias=False) for _ in range(count))
    )


def _strided(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride=2, padding=1)
