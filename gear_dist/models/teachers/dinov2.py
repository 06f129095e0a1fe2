"""DINOv2 (ViT/14, with and without registers) as the teacher."""

from typing import ClassVar

from torch import nn

from gear_dist.models.teachers.encoder import EncoderTeacher, resample_positions

_SIZES = {
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "giant": {
        "hidden_size": 1536,
        "num_hidden_layers": 40,
        "num_attention_heads": 24,
        "use_swiglu_ffn": True,
    },
}
_KINDS = {"dinov2": "dinov2", "dinov2_with_registers": "dinov2-with-registers"}


class DinoV2Teacher(EncoderTeacher):
    """Tokens are: class, registers where the model has some, patches."""

    models: ClassVar = {
        "dinov2": "Dinov2Model",
        "dinov2_with_registers": "Dinov2WithRegistersModel",
    }
    patch_sizes = (14,)
    blocks = "encoder.layer"
    final_norm = "layernorm"
    published: ClassVar = {
        f"facebook/{kind}-{size}": {
            "model_type": model_type,
            "patch_size": 14,
            "image_size": 518,
            **sizes,
        }
        for model_type, kind in _KINDS.items()
        for size, sizes in _SIZES.items()
    }

    @property
    def num_other_tokens(self) -> int:
        """Class token and registers; only the one kind's config.json has a number of these."""
        return 1 + getattr(self.backbone.config, "num_register_tokens", 0)

    def fit_grid(self) -> None:
        """Registers have no position."""
        embeddings = self.backbone.embeddings
        positions = embeddings.position_embeddings.detach()[0]
        positions = resample_positions(positions, self.grid_size, num_other=1)
        embeddings.position_embeddings = nn.Parameter(positions[None])
