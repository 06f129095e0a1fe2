"""Pixel losses of the tokenizer.

Shapes: B images, H x W pixels in [-1, 1].
"""

import torch.nn.functional as F
from torch import Tensor


def gradient_loss(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Mean absolute error of horizontal plus that of vertical pixel differences.

    Stands in for LPIPS where its weights are unavailable: unlike L1 alone it does not forgive
    blurred edges.
    """
    error = reconstruction.float() - images.float()
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def l1_loss(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Mean absolute error, fp32 scalar."""
    return F.l1_loss(reconstruction.float(), images.float())
