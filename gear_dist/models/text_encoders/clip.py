"""CLIP's text tower as a text encoder."""

from typing import ClassVar

from gear_dist.models.text_encoders.library import LibraryTextEncoder


class ClipTextEncoder(LibraryTextEncoder):
    """Causal, with learned positions; a caption has a start and an end token."""

    models: ClassVar = {"clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel"}
    example = "openai/clip-vit-large-patch14"
    blocks = "encoder.layers"
    final_norm = "final_layer_norm"
    published: ClassVar = {
        "openai/clip-vit-large-patch14": {
            "model_type": "clip_text_model",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "vocab_size": 49_408,
        }
    }

    @property
    def max_positions(self) -> int:
        """Learned positions, 77 in the published models."""
        return self.model.config.max_position_embeddings
