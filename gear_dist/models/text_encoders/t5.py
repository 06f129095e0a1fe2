"""T5's encoders, and those of its multilingual kin, as text encoders."""

from typing import ClassVar

from gear_dist.models.text_encoders.library import LibraryTextEncoder

_SIZES = {  # width, feed-forward, blocks, heads
    "base": (768, 2048, 12, 12),
    "large": (1024, 2816, 24, 16),
    "xl": (2048, 5120, 24, 32),
    "xxl": (4096, 10240, 24, 64),
}


class T5TextEncoder(LibraryTextEncoder):
    """Every token sees all; the tokenizer ends a caption with an end token."""

    models: ClassVar = {
        "t5": "T5EncoderModel",
        "mt5": "MT5EncoderModel",
        "umt5": "UMT5EncoderModel",
    }
    example = "google/t5-v1_1-xl"
    blocks = "encoder.block"
    final_norm = "encoder.final_layer_norm"
    takes_positions = False
    queries = "q.weight"
    published: ClassVar = {
        f"google/t5-v1_1-{name}": {
            "model_type": "t5",
            "d_model": width,
            "d_ff": feed_forward,
            "d_kv": 64,
            "num_layers": blocks,
            "num_heads": heads,
            "vocab_size": 32_128,
            "feed_forward_proj": "gated-gelu",
        }
        for name, (width, feed_forward, blocks, heads) in _SIZES.items()
    }
