"""SigLIP2's vision encoder as the teacher, of models with a fixed resolution and of NaFlex."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

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
_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
}
_SIZES = {"base": _BASE, "large": _LARGE, "so400m": _SO400M}


class Siglip2Teacher(EncoderTeacher):
    """Tokens are patches alone; the pooling head is left out.

    Models with a fixed resolution have the layout of SigLIP 1 (`model_type` siglip), whose own
    models so load too; NaFlex differs in its embeddings only.
    """

    models: ClassVar = {
        "siglip": "SiglipVisionModel",
        "siglip_vision_model": "SiglipVisionModel",
        "siglip2": "Siglip2VisionModel",
        "siglip2_vision_model": "Siglip2VisionModel",
    }
    usual_normalisation = "zscore"
    patch_sizes = (14, 16)
    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)
    blocks = "encoder.layers"
    final_norm = "post_layernorm"
    fixed_sizes: ClassVar = {"vision_use_head": False}
    published: ClassVar = {
        **{
            f"google/siglip2-{size}-patch16-256": {
                "model_type": "siglip_vision_model",
                "patch_size": 16,
                "image_size": 256,
                **sizes,
            }
            for size, sizes in _SIZES.items()
        },
        **{
            f"google/siglip2-{size}-patch16-naflex": {
                "model_type": "siglip2_vision_model",
                "patch_size": 16,
                **_SIZES[size],
            }
            for size in ("base", "so400m")
        },
    }

    def fit_grid(self) -> None:
        """NaFlex was trained with bilinear positions, at many grids."""
        embeddings = self.backbone.embeddings
        projection = embeddings.patch_embedding
        patch = embeddings.patch_size
        is_naflex = isinstance(projection, nn.Linear)
        weight = projection.weight.detach()
        if is_naflex:  # it takes patches as (row, column, colour)
            weight = weight.unflatten(1, (patch, patch, 3)).permute(0, 3, 1, 2).contiguous()
        positions = resample_positions(
            embeddings.position_embedding.weight.detach(),
            self.grid_size,
            mode="bilinear" if is_naflex else "bicubic",
        )
        self.backbone.embeddings = GridEmbeddings(weight, projection.bias.detach(), positions)

    def tokens(self, pixels: Tensor) -> Tensor:
        """Patch tokens (B, L, D). The library's own pass has another signature for each layout."""
        embedded = self.backbone.embeddings(pixels)
        last = self.backbone.encoder(inputs_embeds=embedded).last_hidden_state
        return self.backbone.post_layernorm(last)


class GridEmbeddings(nn.Module):
    """Patch and position embeddings of one grid."""

    def __init__(self, weight: Tensor, bias: Tensor, positions_LD: Tensor) -> None:
        """Take over a patch projection (D, 3, patch, patch) with its bias, and positions."""
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)
        self.positions = nn.Parameter(positions_LD)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, L, D) of pixels (B, 3, S, S)."""
        patches = F.conv2d(pixels, self.weight, self.bias, stride=self.weight.shape[-1])
        return patches.flatten(2).mT + self.positions
