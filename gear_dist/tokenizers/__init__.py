"""Tokenizers: images to discrete codes and back."""

from gear_dist.config import TokenizerConfig
from gear_dist.tokenizers.quantizers import Quantized
from gear_dist.tokenizers.vq import TokenizerOutput, VQTokenizer

__all__ = ["Quantized", "TokenizerOutput", "VQTokenizer", "build_tokenizer"]


def build_tokenizer(
    config: TokenizerConfig, *, soft_temperature: float = 0.1, kernels: str = "auto"
) -> VQTokenizer:
    """The tokenizer of a configuration, randomly initialised.

    Args:
        soft_temperature: temperature tau of the soft read-out (`alignment.soft_temperature`).
        kernels: implementation of the codebook kernels (`engine.kernels`).
    """
    families = {"vq": VQTokenizer}
    return families[config.quantizer](config, soft_temperature=soft_temperature, kernels=kernels)
