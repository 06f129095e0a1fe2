"""Qwen3's dense language models as text encoders; the published models read the 1.7B's output."""

from typing import ClassVar

from gear_dist.models.text_encoders.library import LibraryTextEncoder

_SIZES = {  # hidden size, feed-forward, blocks, heads
    "0.6B": (1024, 3072, 28, 16),
    "1.7B": (2048, 6144, 28, 16),
    "4B": (2560, 9728, 36, 32),
    "8B": (4096, 12288, 36, 32),
}


class Qwen3TextEncoder(LibraryTextEncoder):
    """Causal; no token is added to a raw prompt, so an empty caption has none."""

    models: ClassVar = {"qwen3": "Qwen3Model"}
    example = "Qwen/Qwen3-1.7B"
    blocks = "layers"
    final_norm = "norm"
    published: ClassVar = {
        f"Qwen/Qwen3-{name}": {
            "model_type": "qwen3",
            "hidden_size": hidden,
            "intermediate_size": feed_forward,
            "num_hidden_layers": blocks,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151_936,
        }
        for name, (hidden, feed_forward, blocks, heads) in _SIZES.items()
    }
