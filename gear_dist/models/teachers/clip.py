"""CLIP's vision encoder as the teacher."""

from typing import ClassVar

import torch
from torch import nn

from gear_dist.models.teachers.encoder import EncoderTeacher, resample_positions

_BASE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}


class ClipTeacher(EncoderTeacher):
    """Tokens are: class, patches. No final norm: CLIP has one for the class token alone."""

    models: ClassVar = {"clip": "CLIPVisionModel", "clip_vision_model": "CLIPVisionModel"}
    usual_normalisation = "zscore"
    patch_sizes = (14, 16)
    mean = (0.48145466, 0.4578275, 0.40821073)
    std = (0.26862954, 0.26130258, 0.27577711)
    blocks = "encoder.layers"
    final_norm = "post_layernorm"
    published: ClassVar = {
        "openai/clip-vit-base-patch16": {
            "model_type": "clip_vision_model",
            "patch_size": 16,
            **_BASE,
        },
        "openai/clip-vit-large-patch14": {
            "model_type": "clip_vision_model",
            "patch_size": 14,
            **_LARGE,
        },
    }

    @property
    def num_other_tokens(self) -> int:
        """Class token."""
        return 1

    def fit_grid(self) -> None:
        """The model refuses other sizes than the one that its embeddings are for."""
        embeddings = self.backbone.embeddings
        positions = embeddings.position_embedding.weight.detach()
        positions = resample_positions(positions, self.grid_size, num_other=1)
        embeddings.position_embedding = nn.Embedding.from_pretrained(positions)
        embeddings.position_ids = torch.arange(len(positions))[None]
        embeddings.image_size = self.input.side
