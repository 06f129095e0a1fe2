"""Blocks that captions and images go through together, under the public checkpoints' key names.

Shapes: M rows of a batch (see `packing`), G images of one caption length, T rows of a caption, l
image tokens, S = T + l, H heads of width h, D model width, F width of text features.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gear_dist.config.models import GeneratorConfig
from gear_dist.models.activation_checkpoint import activation_checkpoint
from gear_dist.models.generator.conditioning import TextCondition
from gear_dist.models.generator.packing import Group, PackedRows
from gear_dist.models.generator.rotary import rotate
from gear_dist.models.generator.transformer import FeedForward, RMSNorm, attend

Mask = Literal["causal", "prefix"]


class FeatureLinear(nn.Linear):
    """A linear layer that takes features of any floating dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight)


class CaptionProjection(nn.Module):
    """Linear, GELU (tanh), linear, without bias."""

    def __init__(self, text_width: int, width: int):
        super().__init__()
        self.fc1 = FeatureLinear(text_width, width, bias=False)
        self.fc2 = nn.Linear(width, width, bias=False)

    def forward(self, features_MF: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(features_MF), approximate="tanh"))


class CaptionEmbedding(nn.Module):
    """Text features to the model's width."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.cap_proj = CaptionProjection(config.text_width, config.width)

    def forward(self, condition: TextCondition) -> Tensor:
        """(M, D), a row for each of the condition's."""
        return self.cap_proj(condition.features_MF)


def apply_by_stream(
    x_MD: Tensor, rows: PackedRows, module: nn.Module, text_module: nn.Module | None
) -> Tensor:
    """Text rows through their own module, image rows through the other; None: all through one."""
    if text_module is None:
        return module(x_MD)
    text, tokens = x_MD[: rows.num_text], x_MD[rows.num_text :]
    return torch.cat([text_module(text), module(tokens)])


class StreamAttention(nn.Module):
    """Joint attention of captions and images, with weights of its own for text where `double`."""

    def __init__(self, config: GeneratorConfig, *, double: bool):
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.mask: Mask = config.text_mask
        self.turns_text = config.text_rotary == "identity"
        self.wqkv = nn.Linear(width, 3 * width, bias=False)
        self.wo = nn.Linear(width, width, bias=False)
        self.wqkv_text = nn.Linear(width, 3 * width, bias=False) if double else None
        self.wo_text = nn.Linear(width, width, bias=False) if double else None
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(self, x_MD: Tensor, rows: PackedRows) -> Tensor:
        qkv = apply_by_stream(x_MD, rows, self.wqkv, self.wqkv_text)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        q, k = self._turn(q, rows), self._turn(k, rows)
        if rows.on_keys is not None:
            rows.on_keys(k, v)
        y_MD = attend_packed(q, k, v, rows, self.mask)
        return self.dropout(apply_by_stream(y_MD.to(x_MD.dtype), rows, self.wo, self.wo_text))

    def _turn(self, x_MHh: Tensor, rows: PackedRows) -> Tensor:
        """Queries or keys, the images' turned by their place in the grid."""
        text, tokens = rows.split(x_MHh)
        text = text if self.turns_text else torch.zeros_like(text)
        return torch.cat([text, rotate(tokens, rows.table).flatten(0, 1)])


def attend_packed(
    q_MHh: Tensor, k_MHh: Tensor, v_MHh: Tensor, rows: PackedRows, mask: Mask
) -> Tensor:
    """softmax(q k^T / sqrt(h)) v of every row over what it may see, (M, D).

    An image token sees its caption and the tokens before it. Each length of a caption is a causal
    attention of its own, so that neither padding nor a mask exists.
    """
    parts = [rows.split(x) for x in (q_MHh, k_MHh, v_MHh)]
    text_ys, token_ys = [], []
    for group in rows.groups:
        text, tokens = zip(*(_select(*part, group) for part in parts), strict=True)
        text_GHTh, tokens_GHlh = _attend_group(text, tokens, group.num_visible, mask)
        text_ys.append(text_GHTh.transpose(1, 2).flatten(0, 1))
        token_ys.append(tokens_GHlh.transpose(1, 2).flatten(0, 1))
    return torch.cat([*text_ys, *token_ys]).flatten(1)


def _select(text_MHh: Tensor, tokens_BlHh: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """A group's rows, heads second: (G, H, T, h) and (G, H, l, h)."""
    text_GTHh = text_MHh[group.text].unflatten(0, (-1, group.length))
    return text_GTHh.transpose(1, 2), tokens_BlHh[group.images].transpose(1, 2)


Triple = tuple[Tensor, ...]
"""Queries, keys and values."""


def _attend_group(
    text: Triple, tokens: Triple, num_visible: int, mask: Mask
) -> tuple[Tensor, Tensor]:
    """One group's results for its captions and for its image tokens, heads second."""
    seen = [x[:, :, :num_visible] for x in text]
    q, k, v = (torch.cat([own, more], dim=2) for own, more in zip(seen, tokens, strict=True))
    joint = attend(q, k, v, causal=True) if q.shape[2] else q
    text_y, tokens_y = joint[:, :, :num_visible], joint[:, :, num_visible:]
    if mask == "prefix" and num_visible:
        text_y = attend(seen[0], seen[1], seen[2], causal=False)
    if num_visible < text[0].shape[2]:
        start_y = attend(text[0][:, :, num_visible:], text[1], text[2], causal=False)
        text_y = torch.cat([text_y, start_y], dim=2)
    return text_y, tokens_y


class TextBlock(nn.Module):
    """Pre-norm transformer block; text has its own pre-attention norm where `double`."""

    def __init__(self, config: GeneratorConfig, *, double: bool):
        super().__init__()
        self.attention = StreamAttention(config, double=double)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.width)
        self.attention_norm_text = RMSNorm(config.width) if double else None
        self.ffn_norm = RMSNorm(config.width)
        self.recomputes = config.activation_checkpointing

    def forward(self, x_MD: Tensor, rows: PackedRows) -> Tensor:
        return activation_checkpoint(self._forward, x_MD, rows, enabled=self.recomputes)

    def _forward(self, x_MD: Tensor, rows: PackedRows) -> Tensor:
        normed_MD = apply_by_stream(x_MD, rows, self.attention_norm, self.attention_norm_text)
        x_MD = x_MD + self.attention(normed_MD, rows)
        return x_MD + self.feed_forward(self.ffn_norm(x_MD))
