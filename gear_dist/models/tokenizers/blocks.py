"""Blocks of the tokenizers' encoders and decoders, under the public checkpoints' key names.

Shapes: B images, C channels, H x W positions.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gear_dist.config.models import TokenizerConfig
from gear_dist.models.activation_checkpoint import activation_checkpoint

NORM_EPS = 1e-6


class GroupNorm(nn.GroupNorm):
    """Group norm as everywhere in the tokenizers, eps 1e-6.

    On CPU the input is laid out contiguously first, because torch 2.13 takes the variance of a
    channels-last one as mean of squares minus squared mean, in fp32: at mean 5 and deviation 0.1
    results are 0.003 off, and meaningless at mean 500. It is also up to twenty times as slow.
    """

    def __init__(self, groups: int, channels: int, *, affine: bool = True):
        super().__init__(groups, channels, eps=NORM_EPS, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous() if x.device.type == "cpu" else x)


class ResidualBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice, plus the input: (B, C_in, H, W) -> (B, C_out, H, W)."""

    def __init__(
        self, channels_in: int, channels_out: int, config: TokenizerConfig, *, bias: bool = True
    ):
        super().__init__()
        groups = config.norm_groups
        self.norm1 = GroupNorm(groups, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=bias)
        self.norm2 = GroupNorm(groups, channels_out)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=bias)
        self.nin_shortcut: nn.Module = nn.Identity()
        if channels_in != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1, bias=bias)
        self.recomputes = config.activation_checkpointing

    def forward(self, x: Tensor) -> Tensor:
        return activation_checkpoint(self._forward, x, enabled=self.recomputes)

    def _forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.nin_shortcut(x) + h


class AttentionBlock(nn.Module):
    """Single-head self-attention over positions, plus the input: (B, C, H, W) -> the same."""

    def __init__(self, channels: int, config: TokenizerConfig):
        super().__init__()
        self.norm = GroupNorm(config.norm_groups, channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)
        self.recomputes = config.activation_checkpointing

    def forward(self, x: Tensor) -> Tensor:
        return activation_checkpoint(self._forward, x, enabled=self.recomputes)

    def _forward(self, x: Tensor) -> Tensor:
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
    """Residual blocks of one resolution, attention after each where asked, then resampling.

    Args:
        channels: entering the first block, then leaving each; so one more than there are blocks.
        blocks_key: name of the list of blocks.
        resampling: name of the module at the end, and what builds it from its channels.
    """

    def __init__(
        self,
        channels: Sequence[int],
        config: TokenizerConfig,
        blocks_key: str,
        *,
        attention: bool = False,
        bias: bool = True,
        resampling: tuple[str, Callable[[int], nn.Module]] | None = None,
    ):
        super().__init__()
        pairs = list(itertools.pairwise(channels))
        self.blocks_key = blocks_key
        blocks = (ResidualBlock(a, b, config, bias=bias) for a, b in pairs)
        self.add_module(blocks_key, nn.ModuleList(blocks))
        self.attn = nn.ModuleList(AttentionBlock(b, config) for _, b in pairs if attention)
        self.resampling_key = ""
        if resampling is not None:
            self.resampling_key, build = resampling
            self.add_module(self.resampling_key, build(channels[-1]))

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.get_submodule(self.blocks_key).children()):
            x = block(x)
            if len(self.attn) > 0:
                x = self.attn[i](x)
        if self.resampling_key:
            x = self.get_submodule(self.resampling_key)(x)
        return x
