"""T5Gemma's encoders as text encoders."""

from typing import Any, ClassVar

from gear_dist.models.text_encoders.library import LibraryTextEncoder


class T5GemmaTextEncoder(LibraryTextEncoder):
    """Every token sees all; the tokenizer begins a caption with a start token."""

    models: ClassVar = {"t5gemma": "T5GemmaEncoderModel"}
    example = "google/t5gemma-2b-2b-ul2"
    blocks = "encoder.layers"
    final_norm = "encoder.norm"
    # The library makes the encoder alone only of a configuration that says so.
    fixed_sizes: ClassVar[dict[str, Any]] = {"is_encoder_decoder": False}

    @property
    def hidden_size(self) -> int:
        """Of the encoder; the configuration has one for each half."""
        return self.model.config.encoder.hidden_size
