"""DINOv2 (ViT/14) as the teacher, through transformers."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gear_dist.errors import ConfigError
from gear_dist.teachers.base import Teacher

PATCH = 14
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class DinoV2Teacher(Teacher):
    """Last block after the final norm, patch tokens only, at 14 pixels a token position.

    The position embeddings are resampled once to the token grid (bicubic with antialiasing, as
    timm's `resample_abs_pos_embed`, which the published models of this family were trained with).
    """

    def __init__(self, backbone: Any, *, image_size: int, grid_size: int) -> None:
        """Take a `Dinov2Model` over."""
        super().__init__(image_size=image_size, grid_size=grid_size)
        self.backbone = backbone
        self.width = self.backbone.config.hidden_size
        embeddings = self.backbone.embeddings
        embeddings.position_embeddings = torch.nn.Parameter(
            resample_positions(embeddings.position_embeddings.detach(), grid_size)
        )
        self.freeze()

    def encode(self, images: Tensor) -> Tensor:
        """Patch features (B, L, width) of images (B, 3, H, W) in [-1, 1]."""
        pixels = dinov2_input(images, self.grid_size)
        return self.backbone(pixel_values=pixels).last_hidden_state[:, 1:]


def dinov2_input(images: Tensor, grid_size: int) -> Tensor:
    """What a patch-14 encoder sees of a crop: ImageNet-normalised, 14 pixels a token position.

    Args:
        images: (B, 3, H, W) float in [-1, 1].
        grid_size: token positions along a side.

    Returns:
        (B, 3, 14 grid_size, 14 grid_size) fp32; bicubic, no antialias, corners not aligned,
        overshoot not clamped.
    """
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(1, 3, 1, 1)
    pixels = ((images.float() + 1) / 2 - mean) / std
    side = PATCH * grid_size
    return F.interpolate(pixels, (side, side), mode="bicubic", align_corners=False, antialias=False)


def resample_positions(positions: Tensor, grid_size: int) -> Tensor:
    """Resample (1, 1 + G^2, width) position embeddings, class token first, to grid_size^2."""
    source = round((positions.shape[1] - 1) ** 0.5)
    if source == grid_size:
        return positions
    grid = positions[:, 1:].float().unflatten(1, (source, source)).movedim(3, 1)
    grid = F.interpolate(
        grid, (grid_size, grid_size), mode="bicubic", align_corners=False, antialias=True
    )
    patches = grid.movedim(1, 3).flatten(1, 2).to(positions.dtype)
    return torch.cat([positions[:, :1], patches], dim=1)


def load_dinov2(path: str, *, image_size: int, grid_size: int) -> DinoV2Teacher:
    """The teacher of a local folder or a hub name.

    Raises:
        ConfigError: it cannot be reached, or is no DINOv2 model of patch size 14.
    """
    return DinoV2Teacher(_load_backbone(path), image_size=image_size, grid_size=grid_size)


def _load_backbone(path: str) -> Any:
    from transformers import AutoConfig, Dinov2Model
    from transformers.utils import logging

    if path.startswith((".", "/", "~")) and not Path(path).expanduser().is_dir():
        raise ConfigError(
            f"teacher.path={path}: no such folder; give a folder with config.json and "
            "model.safetensors of a DINOv2 model, or a hub name such as facebook/dinov2-base"
        )
    source = str(Path(path).expanduser()) if Path(path).expanduser().is_dir() else path
    shows_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(source)
        _check_config(path, config)
        return Dinov2Model.from_pretrained(source, config=config, dtype=torch.float32)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"teacher.path={path}: DINOv2 weights are not reachable ({reason}); give a local "
            "folder with config.json and model.safetensors, or connect to the hub (unset "
            "HF_HUB_OFFLINE), or use teacher.name=convnet"
        ) from None
    finally:
        if shows_progress:
            logging.enable_progress_bar()


def _check_config(path: str, config: Any) -> None:
    if config.model_type != "dinov2":
        raise ConfigError(
            f"teacher.path={path} holds a {config.model_type!r} model: teacher.name=dinov2 needs "
            "a DINOv2 one without registers, such as facebook/dinov2-base"
        )
    if config.patch_size != PATCH:
        raise ConfigError(
            f"teacher.path={path} has patch size {config.patch_size}: DINOv2 teachers have {PATCH}"
        )
