"""V-JEPA 2's encoder as a teacher: each image is a static clip."""

from typing import Any, ClassVar

from torch import Tensor

from gear_dist.models.teachers.encoder import EncoderTeacher

_SIZES: dict[str, dict[str, Any]] = {
    "vitl": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "vith": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16},
    "vitg": {
        "hidden_size": 1408,
        "num_hidden_layers": 40,
        "num_attention_heads": 22,
        "mlp_ratio": 48 / 11,
    },
}


class VJepa2Teacher(EncoderTeacher):
    """Tokens are patches of one tubelet; the predictor is left out."""

    models: ClassVar = {"vjepa2": "VJEPA2Model"}
    usual_normalisation = "zscore"
    patch_sizes = (16,)
    blocks = "layer"
    final_norm = "layernorm"
    published: ClassVar = {
        f"facebook/vjepa2-{size}-fpc64-256": {"model_type": "vjepa2", **sizes}
        for size, sizes in _SIZES.items()
    }

    def __init__(self, backbone: Any, *, image_size: int, grid_size: int, block: int = 0) -> None:
        """Take the encoder of a `VJEPA2Model` over."""
        super().__init__(backbone.encoder, image_size=image_size, grid_size=grid_size, block=block)

    def fit_grid(self) -> None:
        """Rotary positions are counted in patches; the model takes rows to be as long as its own.

        The published code counts them in the patches of the images it is given, too.
        """
        for layer in self.backbone.layer:
            layer.attention.grid_size = self.grid_size

    def tokens(self, pixels: Tensor) -> Tensor:
        """Patch tokens (B, L, D) of the pixels, repeated over one tubelet."""
        frames = self.backbone.config.tubelet_size
        clip = pixels[:, None].expand(-1, frames, -1, -1, -1)
        return self.backbone(pixel_values_videos=clip).last_hidden_state
