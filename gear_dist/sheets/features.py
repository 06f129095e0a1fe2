"""What images are compared by: pooled features of the tokenizer's encoder, or of a teacher.

Shapes: B images, F features, h x w positions.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from gear_dist.config.models import TeacherConfig
from gear_dist.data.pixels import to_model_range
from gear_dist.inference.pipeline import GearPipeline
from gear_dist.models.teachers import Teacher, load_teacher

REGIONS = 4
"""A side of the tokenizer's features after pooling: what is where still counts."""


class Features(Protocol):
    """Turns images into vectors."""

    def __call__(self, images_u8: Tensor) -> Tensor:
        """(B, F) fp32 on the device, of uint8 (B, 3, H, W); one batch through the network."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """What they are, for programs."""
        ...


class TokenizerFeatures(NamedTuple):
    """The encoder's output before quantisation, its mean in each of 4 x 4 regions."""

    pair: GearPipeline

    @torch.no_grad()
    def __call__(self, images_u8: Tensor) -> Tensor:
        images = to_model_range(images_u8.to(self.pair.device))
        latents_BChw = self.pair.tokenizer.encoder(images).float()
        side = min(REGIONS, latents_BChw.shape[-1])
        return F.adaptive_avg_pool2d(latents_BChw, side).flatten(1)

    @property
    def facts(self) -> dict[str, Any]:
        return {"network": "tokenizer", "regions": REGIONS}


class TeacherFeatures(NamedTuple):
    """A frozen encoder's patch features, their mean over the image."""

    teacher: Teacher
    config: TeacherConfig
    device: torch.device

    @torch.no_grad()
    def __call__(self, images_u8: Tensor) -> Tensor:
        return self.teacher(to_model_range(images_u8.to(self.device))).mean(1)

    @property
    def facts(self) -> dict[str, Any]:
        return {"network": self.config.name, "path": self.config.path, "block": self.config.block}


def load_tokenizer_features(pair: GearPipeline, section: TeacherConfig) -> Features:
    """Of the pair's own tokenizer."""
    return TokenizerFeatures(pair)


def load_teacher_features(pair: GearPipeline, section: TeacherConfig) -> Features:
    """Of a teacher.

    Raises:
        ConfigError: it cannot be had, or does not fit.
    """
    config = pair.config
    size = config.data.image_size
    teacher = load_teacher(section, image_size=size, grid_size=config.grid_size)
    # A mean over positions has nothing left of what was demeaned over positions.
    teacher.normalisation = "none"
    return TeacherFeatures(teacher.to(pair.device), section, pair.device)


FEATURES: Mapping[str, Callable[[GearPipeline, TeacherConfig], Features]] = {
    "tokenizer": load_tokenizer_features,
    "teacher": load_teacher_features,
}
"""By the name that --features takes."""
