"""Qwen3's dense language models as text encoders; the published models read the 1.7B's output."""

from typing import ClassVar

from gear_dist.models.text_encoders.library import LibraryTextEncoder


class Qwen3TextEncoder(LibraryTextEncoder):
    """Causal; no token is added to a raw prompt, so an empty caption has none."""

    models: ClassVar = {"qwen3": "Qwen3Model"}
    example = "Qwen/Qwen3-1.7B"
    blocks = "layers"
    final_norm = "norm"
