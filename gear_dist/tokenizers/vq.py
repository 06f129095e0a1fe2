"""The VQ tokenizer: encoder, quantizer, decoder.

Shapes: B images, L = h w tokens, H = f h. Source: arXiv 2406.06525.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gear_dist.config import TokenizerConfig
from gear_dist.tokenizers.blocks import Decoder, Encoder
from gear_dist.tokenizers.quantizers import Quantized, VectorQuantizer


class TokenizerOutput(NamedTuple):
    """One tokenizer pass. A NamedTuple, because ZeRO-3's hooks do not enter dataclasses."""

    reconstruction: Tensor
    """(B, 3, H, W), about [-1, 1]."""
    quantized: Quantized


class VQTokenizer(nn.Module):
    """Images in [-1, 1] to a grid of codes and back."""

    def __init__(self, config: TokenizerConfig, *, soft_temperature: float, kernels: str):
        super().__init__()
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.code_width, 1)
        self.quantize = VectorQuantizer(
            config.codebook_size,
            config.code_width,
            commit_weight=config.commit_weight,
            entropy_temperature=config.entropy_temperature,
            soft_temperature=soft_temperature,
            kernels=kernels,
        )
        self.post_quant_conv = nn.Conv2d(config.code_width, config.latent_channels, 1)
        self.decoder = Decoder(config)

    def forward(self, images: Tensor) -> TokenizerOutput:
        """Images (B, 3, H, W) in [-1, 1] to their reconstruction and the assignment."""
        quantized = self.quantize(self.quant_conv(self.encoder(images)))
        reconstruction = self.decoder(self.post_quant_conv(quantized.quantized_BChw))
        return TokenizerOutput(reconstruction, quantized)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Indices (B, L), int64, raster order."""
        quantized = self.quantize(self.quant_conv(self.encoder(images)))
        return quantized.indices_N.view(images.shape[0], -1)

    @torch.no_grad()
    def decode(self, indices_BL: Tensor) -> Tensor:
        """Images (B, 3, H, W) of indices (B, L) on a square grid."""
        side = round(indices_BL.shape[1] ** 0.5)
        codes = self.quantize.lookup(indices_BL.view(-1, side, side))
        return self.decoder(self.post_quant_conv(codes))
