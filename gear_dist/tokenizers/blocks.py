"""Convolutional encoder and decoder of the VQ tokenizer, under the public checkpoints' key names.

Shapes: B images, C channels, H x W positions.
"""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gear_dist.config import TokenizerConfig

NORM_EPS = 1e-6


class GroupNorm(nn.GroupNorm):
    """Group norm as everywhere in the tokenizers, eps 1e-6.

    On CPU the input is laid out contiguously first: torch's group norm takes there up to twenty
    times as long on the channels-last outputs of bf16 convolutions, far more than the copy.
    """

    def __init__(self, groups: int, channels: int):
        super().__init__(groups, channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous() if x.device.type == "cpu" else x)


class ResidualBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice, plus the input: (B, C_in, H, W) -> (B, C_out, H, W)."""

    def __init__(self, channels_in: int, channels_out: int, groups: int, dropout: float):
        super().__init__()
        self.norm1 = GroupNorm(groups, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = GroupNorm(groups, channels_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        same = channels_in == channels_out
        self.nin_shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.nin_shortcut(x) + h


class AttentionBlock(nn.Module):
    """Single-head self-attention over positions, plus the input: (B, C, H, W) -> the same."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = GroupNorm(groups, channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (project(normed).flatten(2) for project in (self.q, self.k, self.v))
        affinity = torch.bmm(q.transpose(1, 2), k) / math.sqrt(x.shape[1])
        weights = torch.softmax(affinity.float(), dim=-1).to(v.dtype)
        attended = torch.bmm(v, weights.transpose(1, 2))
        return x + self.proj_out(attended.view_as(x))


class Downsample(nn.Module):
    """Halves the resolution: one zero row below and column right, 3x3 convolution of stride 2."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles the resolution: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks of one resolution, attention after each where asked, then resampling."""

    def __init__(
        self,
        channels: Sequence[int],
        config: TokenizerConfig,
        *,
        attention: bool,
        downsample: bool = False,
        upsample: bool = False,
    ):
        super().__init__()
        pairs = list(itertools.pairwise(channels))
        self.res = nn.ModuleList(_residual(a, b, config) for a, b in pairs)
        self.attn = nn.ModuleList(
            AttentionBlock(b, config.norm_groups) for _, b in pairs if attention
        )
        if downsample:
            self.downsample = Downsample(channels[-1])
        if upsample:
            self.upsample = Upsample(channels[-1])

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            x = block(x)
            if len(self.attn) > 0:
                x = self.attn[i](x)
        for name in ("downsample", "upsample"):
            if name in self._modules:
                x = self._modules[name](x)  # type: ignore[misc]
        return x


def _residual(channels_in: int, channels_out: int, config: TokenizerConfig) -> ResidualBlock:
    return ResidualBlock(channels_in, channels_out, config.norm_groups, config.dropout)


def _middle(channels: int, config: TokenizerConfig) -> nn.Sequential:
    return nn.Sequential(
        _residual(channels, channels, config),
        AttentionBlock(channels, config.norm_groups),
        _residual(channels, channels, config),
    )


class Encoder(nn.Module):
    """Images (B, 3, H, W) -> latents (B, latent_channels, H / f, W / f)."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        channels, blocks = config.channels, config.num_res_blocks
        widths = [channels * m for m in config.channel_multipliers]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        self.conv_blocks = nn.ModuleList(
            Level(
                [channels if i == 0 else widths[i - 1]] + [width] * blocks,
                config,
                attention=i == last,
                downsample=i < last,
            )
            for i, width in enumerate(widths)
        )
        self.mid = _middle(widths[-1], config)
        self.norm_out = GroupNorm(config.norm_groups, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.conv_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latents (B, latent_channels, H / f, W / f) -> images (B, 3, H, W)."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        # Lowest resolution first.
        widths = [config.channels * m for m in reversed(config.channel_multipliers)]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid = _middle(widths[0], config)
        self.conv_blocks = nn.ModuleList(
            Level(
                [widths[max(i - 1, 0)]] + [width] * (config.num_res_blocks + 1),
                config,
                attention=i == 0,
                upsample=i < last,
            )
            for i, width in enumerate(widths)
        )
        self.norm_out = GroupNorm(config.norm_groups, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in self.conv_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))
