"""Frozen encoders of captions, for generators with condition=text: the registry.

Importing it does not import torch, so that the command line stays quick.
"""

import importlib
from typing import TYPE_CHECKING

from gear_dist.config.text import TextEncoderConfig

if TYPE_CHECKING:
    import torch

    from gear_dist.models.text_encoders.base import EncoderSize, TextEncoder

__all__ = [
    "TEXT_ENCODERS",
    "load_text_encoder",
    "measure_text_encoder",
    "text_encoder_class",
]

TEXT_ENCODERS = {
    "clip": "clip.ClipTextEncoder",
    "qwen3": "qwen3.Qwen3TextEncoder",
    "t5": "t5.T5TextEncoder",
    "t5gemma": "t5gemma.T5GemmaTextEncoder",
    "words": "words.WordsTextEncoder",
}
"""Module in this package and class of each `text_encoder.name`."""


def text_encoder_class(name: str) -> "type[TextEncoder]":
    """The class of a `text_encoder.name`; imports torch."""
    module, _, attribute = TEXT_ENCODERS[name].partition(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def load_text_encoder(
    config: TextEncoderConfig, *, width: int, device: "torch.device"
) -> "TextEncoder":
    """The frozen encoder of a section, on a device: in bf16 on CUDA, else in fp32.

    Args:
        width: feature width that the generator takes.

    Raises:
        ConfigError: files are not reachable, of another family, or do not fit the settings; or
            the features have another width.
    """
    import torch

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    encoder = text_encoder_class(config.name).load(config, dtype).to(device)
    encoder.check_width(width)
    return encoder


def measure_text_encoder(config: TextEncoderConfig) -> "EncoderSize":
    """The sizes of the same encoder, without weights. Reads config.json at most.

    Raises:
        ConfigError: an encoder whose sizes are not known here.
    """
    return text_encoder_class(config.name).measure(config)
