"""DINOv3 (ViT/16 with registers and rotary positions) as the teacher."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from gear_dist.models.teachers.encoder import EncoderTeacher

_SIZES = {
    "vits16": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    "vitb16": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "vitl16": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
}


class DinoV3Teacher(EncoderTeacher):
    """Tokens are: class, registers, patches.

    Models of satellite images were trained with another mean and deviation, and are not for this.
    """

    models: ClassVar = {"dinov3_vit": "DINOv3ViTModel"}
    patch_sizes = (16,)
    blocks = "model.layer"
    final_norm = "norm"
    published: ClassVar = {
        f"facebook/dinov3-{size}-pretrain-lvd1689m": {
            "model_type": "dinov3_vit",
            "intermediate_size": 4 * sizes["hidden_size"],
            "num_register_tokens": 4,
            **sizes,
        }
        for size, sizes in _SIZES.items()
    }

    @property
    def num_other_tokens(self) -> int:
        """Class token and registers."""
        return 1 + self.backbone.config.num_register_tokens

    def fit_grid(self) -> None:
        """Positions are coordinates from -1 to 1 at any grid."""
        rotary = GridRotary(self.backbone.rope_embeddings.inv_freq, self.grid_size)
        self.backbone.rope_embeddings = rotary


class GridRotary(nn.Module):
    """The model's rotary table at one grid.

    The model makes it anew in every pass, from coordinates that the library keeps for the whole
    process: those of tensors without memory (`gear-dist plan`) would be found by real models.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, inv_freq: Tensor, grid_size: int) -> None:
        """Tables (L, head width) of frequencies (head width / 4)."""
        super().__init__()
        centres = 2.0 * (torch.arange(0.5, grid_size) / grid_size) - 1.0
        coordinates = torch.cartesian_prod(centres, centres)
        angles = 2 * math.pi * coordinates[:, :, None] * inv_freq
        angles = angles.flatten(1).tile(2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, fp32; of the pixels, which have the grid's size, nothing is read."""
        return self.cos, self.sin
