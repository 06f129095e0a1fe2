"""Conditions (class labels) and their embedding; dropping them for classifier-free guidance.

Shapes: B images, P positions in front of an image's tokens, D model width.
"""

from collections.abc import Iterator
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from gear_dist.config.models import GeneratorConfig


class ClassCondition(NamedTuple):
    """Images of classes. The number of classes stands for none of them: the null class."""

    labels_B: Tensor
    """int64."""

    @property
    def num_images(self) -> int:
        """Images B."""
        return len(self.labels_B)

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        return self._replace(labels_B=self.labels_B.to(device, non_blocking=True))

    def split(self, size: int) -> Iterator[Self]:
        """Parts of at most so many images."""
        for labels_B in self.labels_B.split(size):
            yield self._replace(labels_B=labels_B)

    def dropped(self, drop_B: Tensor, config: GeneratorConfig) -> Self:
        """The null condition where `drop_B` (B,) is true, for classifier-free guidance."""
        return self._replace(labels_B=torch.where(drop_B, config.num_classes, self.labels_B))

    def with_null(self, config: GeneratorConfig) -> Self:
        """2 B images: each one's condition, then the null condition as often."""
        null_B = torch.full_like(self.labels_B, config.num_classes)
        return self._replace(labels_B=torch.cat([self.labels_B, null_B]))


Condition = ClassCondition
"""Every kind of condition has the members of `ClassCondition`."""


class ClassEmbedding(nn.Module):
    """Class table with a null row (index num_classes) where classes are ever dropped."""

    num_positions = 1
    """Positions P."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        rows = config.num_classes + (config.class_dropout > 0)
        self.embedding_table = nn.Embedding(rows, config.width)

    def forward(self, condition: ClassCondition) -> Tensor:
        """(B, P, D)."""
        return self.embedding_table(condition.labels_B)[:, None]
