"""Between stored pixels, uint8, and what the networks take, floats in [-1, 1]."""

import torch
from torch import Tensor


@torch.no_grad()
def to_model_range(images_u8: Tensor) -> Tensor:
    """uint8 images, any shape, to floats in [-1, 1]."""
    return images_u8.float() / 127.5 - 1.0


@torch.no_grad()
def to_u8(images: Tensor) -> Tensor:
    """Images in [-1, 1] to uint8 on the CPU, clamped and rounded."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
