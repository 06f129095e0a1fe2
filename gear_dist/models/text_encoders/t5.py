"""T5's encoders, and those of its multilingual kin, as text encoders."""

from typing import ClassVar

from gear_dist.models.text_encoders.library import LibraryTextEncoder


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
