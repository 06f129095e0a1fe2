"""What every teacher is: a frozen encoder from images to one feature per token position."""

import torch
from torch import Tensor, nn


class Teacher(nn.Module):
    """Frozen encoder: always in evaluation mode, no parameter requires a gradient.

    Subclasses set `width`, define `encode`, and call `freeze` at the end of their constructor.
    """

    width: int
    """Feature width."""

    def __init__(self, *, image_size: int, grid_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.grid_size = grid_size

    def encode(self, images: Tensor) -> Tensor:
        """Features (B, L, width) of images (B, 3, H, W); any floating dtype."""
        raise NotImplementedError

    def freeze(self) -> None:
        """Take all parameters out of training."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode, whatever mode a parent module switches to."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features of each token position, without a gradient.

        Args:
            images: (B, 3, H, W) float in [-1, 1], H = W = image_size.

        Returns:
            (B, L, width) fp32, L = grid_size^2, raster order. Runs in the caller's autocast.

        Raises:
            ValueError: the images have another shape.
        """
        size = self.image_size
        if tuple(images.shape[1:]) != (3, size, size):
            raise ValueError(
                f"teacher expects images (B, 3, {size}, {size}), got {tuple(images.shape)}"
            )
        with torch.no_grad():
            features = self.encode(images).float()
        assert features.shape[1:] == (self.grid_size**2, self.width)
        return features
