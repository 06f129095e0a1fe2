"""The tokenizer of every family: encoder, quantizer, decoder.

Shapes: B images, L = h w tokens, H = f h.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gear_dist.models.tokenizers.quantizers import Quantized, Quantizer


class TokenizerOutput(NamedTuple):
    """One tokenizer pass. A NamedTuple, because ZeRO-3's hooks do not enter dataclasses."""

    reconstruction: Tensor
    """(B, 3, H, W), about [-1, 1]."""
    quantized: Quantized


class TokenizerParts(NamedTuple):
    """What a family puts together."""

    encoder: nn.Module
    quant_conv: nn.Module
    """Between encoder and quantizer; the identity where the family has none."""
    quantize: Quantizer
    post_quant_conv: nn.Module
    """Between quantizer and decoder; the identity where the family has none."""
    decoder: nn.Module


class Tokenizer(nn.Module):
    """Images in [-1, 1] to a grid of codes and back."""

    def __init__(self, parts: TokenizerParts):
        super().__init__()
        self.encoder = parts.encoder
        self.quant_conv = parts.quant_conv
        self.quantize = parts.quantize
        self.post_quant_conv = parts.post_quant_conv
        self.decoder = parts.decoder

    def forward(self, images: Tensor) -> TokenizerOutput:
        """Images (B, 3, H, W) in [-1, 1] to their reconstruction and the assignment."""
        quantized = self._quantize(images)
        reconstruction = self.decoder(self.post_quant_conv(quantized.quantized_BChw))
        return TokenizerOutput(reconstruction, quantized)

    def _quantize(self, images: Tensor) -> Quantized:
        return self.quantize(self.quant_conv(self.encoder(images)))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Indices (B, L), int64, raster order."""
        return self._quantize(images).indices_N.view(images.shape[0], -1)

    @torch.no_grad()
    def decode(self, indices_BL: Tensor) -> Tensor:
        """Images (B, 3, H, W) of indices (B, L) on a square grid."""
        side = round(indices_BL.shape[1] ** 0.5)
        codes = self.quantize.lookup(indices_BL.view(-1, side, side))
        return self.decoder(self.post_quant_conv(codes))
