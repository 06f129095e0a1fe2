"""What every teacher is: a frozen encoder from images to one feature per token position."""

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from gear_dist.config.models import TeacherConfig
from gear_dist.errors import ConfigError
from gear_dist.models.teachers.normalisation import Normalisation, normalise_features


class Teacher(nn.Module):
    """Frozen encoder: always in evaluation mode, no parameter requires a gradient.

    Subclasses set `width`, define `load`, `untrained` and `encode`, and call `freeze` at the end
    of their constructor.
    """

    models: ClassVar[Mapping[str, str]] = {}
    """The transformers library's class by `model_type` of config.json, where it reads such."""
    usual_normalisation: ClassVar[Normalisation] = "none"
    """What `normalisation=auto` means."""
    width: int
    """Feature width."""

    def __init__(self, *, image_size: int, grid_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.grid_size = grid_size
        self.normalisation: Normalisation = "none"
        self.alpha = 0.0

    @classmethod
    def load(cls, config: TeacherConfig, *, image_size: int, grid_size: int, setting: str) -> Self:
        """See `gear_dist.models.teachers.load_teacher`."""
        raise NotImplementedError

    @classmethod
    def untrained(
        cls, config: TeacherConfig, *, image_size: int, grid_size: int, setting: str
    ) -> Self:
        """See `gear_dist.models.teachers.untrained_teachers`."""
        raise NotImplementedError

    def encode(self, images: Tensor) -> Tensor:
        """Features (B, L, width) of images (B, 3, H, W); any floating dtype."""
        raise NotImplementedError

    def set_normalisation(self, config: TeacherConfig, setting: str) -> None:
        """Normalise features from now on as the section says.

        Raises:
            ConfigError: a standard deviation over a single position.
        """
        if config.normalisation == "auto":
            self.normalisation = self.usual_normalisation
        else:
            self.normalisation = config.normalisation
        self.alpha = config.alpha
        if self.normalisation == "zscore" and self.grid_size == 1:
            raise ConfigError(
                f"{setting}.normalisation={config.normalisation} divides by the standard deviation "
                "over token positions, and there is one: use none, or larger images"
            )

    def freeze(self) -> None:
        """Take all parameters out of training."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever mode a parent module switches to."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features of each token position, spatially normalised, without a gradient.

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
                f"data.image_size={size}: the teacher expects (B, 3, {size}, {size}), got "
                f"{tuple(images.shape)}"
            )
        with torch.no_grad():
            features = self.encode(images).float()
            assert features.shape[1:] == (self.grid_size**2, self.width)
            return normalise_features(features, self.normalisation, self.alpha)
