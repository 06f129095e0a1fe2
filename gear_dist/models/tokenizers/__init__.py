"""Tokenizers: images to discrete codes and back."""

from collections.abc import Callable

from torch import nn

from gear_dist.config.models import TokenizerConfig
from gear_dist.models.tokenizers import magvit2, vqgan
from gear_dist.models.tokenizers.codes import Codes, LearnedCodes, SignCodes
from gear_dist.models.tokenizers.quantizers import (
    IndexBackpropagationQuantizer,
    LookupFreeQuantizer,
    Quantized,
    Quantizer,
    QuantizerSettings,
    VectorQuantizer,
)
from gear_dist.models.tokenizers.tokenizer import Tokenizer, TokenizerOutput, TokenizerParts
from gear_dist.models.tokenizers.vqgan import IBQ_KEYS, VQ_KEYS, KeyNames

__all__ = [
    "Codes",
    "LearnedCodes",
    "Quantized",
    "SignCodes",
    "Tokenizer",
    "TokenizerOutput",
    "build_tokenizer",
]


def build_tokenizer(
    config: TokenizerConfig, *, soft_temperature: float = 0.1, kernels: str = "auto"
) -> Tokenizer:
    """The tokenizer of a configuration, randomly initialised.

    Args:
        soft_temperature: temperature tau of the soft read-out (`alignment.soft_temperature`).
        kernels: implementation of the codebook kernels (`engine.kernels`).
    """
    return Tokenizer(
        _FAMILIES[config.quantizer](config, QuantizerSettings.of(config, soft_temperature, kernels))
    )


def _vq(config: TokenizerConfig, settings: QuantizerSettings) -> TokenizerParts:
    return _between_convolutions(config, settings, VectorQuantizer, VQ_KEYS)


def _ibq(config: TokenizerConfig, settings: QuantizerSettings) -> TokenizerParts:
    return _between_convolutions(config, settings, IndexBackpropagationQuantizer, IBQ_KEYS)


def _between_convolutions(
    config: TokenizerConfig,
    settings: QuantizerSettings,
    quantizer: Callable[[QuantizerSettings], Quantizer],
    keys: KeyNames,
) -> TokenizerParts:
    return TokenizerParts(
        encoder=vqgan.Encoder(config, keys),
        quant_conv=nn.Conv2d(config.latent_channels, config.code_width, 1),
        quantize=quantizer(settings),
        post_quant_conv=nn.Conv2d(config.code_width, config.latent_channels, 1),
        decoder=vqgan.Decoder(config, keys),
    )


def _lfq(config: TokenizerConfig, settings: QuantizerSettings) -> TokenizerParts:
    return TokenizerParts(
        encoder=magvit2.Encoder(config),
        quant_conv=nn.Identity(),
        quantize=LookupFreeQuantizer(settings),
        post_quant_conv=nn.Identity(),
        decoder=magvit2.Decoder(config),
    )


_FAMILIES: dict[str, Callable[[TokenizerConfig, QuantizerSettings], TokenizerParts]] = {
    "vq": _vq,
    "lfq": _lfq,
    "ibq": _ibq,
}
