"""A generator's weights as decoding multiplies them: w1 and w3 in one product, as q, k and v are.

Shapes: D model width, F hidden width, K codes, h width of a head, L tokens.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gear_dist.models.generator.transformer import Generator


class LayerWeights(NamedTuple):
    """Of one block; of a double-stream block, those of the image tokens."""

    attention_norm_D: Tensor
    wqkv: Tensor
    """(3 D, D)."""
    wo: Tensor
    """(D, D)."""
    ffn_norm_D: Tensor
    w13: Tensor
    """(2 F, D): w1, then w3."""
    w2: Tensor
    """(D, F)."""


class DecoderWeights(NamedTuple):
    """Of a whole generator, but for the embedding of its condition."""

    embeddings_KD: Tensor
    layers: tuple[LayerWeights, ...]
    norm_D: Tensor
    head_KD: Tensor
    rotary: Tensor
    """fp32 (1 + L, h / 2, 2): row t is of the input that predicts token t."""
    num_heads: int


def pack_weights(generator: Generator, dtype: torch.dtype) -> DecoderWeights:
    """The generator's weights. It keeps none of its own: they are views of these, in this dtype."""
    generator.to(dtype)
    layers = tuple(_pack_layer(block) for block in generator.layers)
    return DecoderWeights(
        embeddings_KD=generator.tok_embeddings.weight.data,
        layers=layers,
        norm_D=generator.norm.weight.data,
        head_KD=generator.output.weight.data,
        rotary=generator.rotary(generator.norm.weight.device),
        num_heads=generator.config.num_heads,
    )


def _pack_layer(block: Any) -> LayerWeights:
    attention, ffn = block.attention, block.feed_forward
    w13 = torch.cat([ffn.w1.weight.data, ffn.w3.weight.data])
    # One storage for both: at every moment a single layer has two copies.
    ffn.w1.weight.data, ffn.w3.weight.data = w13.chunk(2)
    return LayerWeights(
        attention_norm_D=block.attention_norm.weight.data,
        wqkv=attention.wqkv.weight.data,
        wo=attention.wo.weight.data,
        ffn_norm_D=block.ffn_norm.weight.data,
        w13=w13,
        w2=ffn.w2.weight.data,
    )
