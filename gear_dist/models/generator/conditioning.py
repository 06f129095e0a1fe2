"""Conditions (classes, captions) and their embedding; dropping them for classifier-free guidance.

Shapes: B images, P positions in front of an image's tokens, M rows of the captions of all images,
D model width, F width of a text encoder's features.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from gear_dist.config.models import GeneratorConfig
from gear_dist.errors import ConfigError


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

    def dropped(self, drop: Sequence[bool], config: GeneratorConfig) -> Self:
        """The null condition where `drop` (of each image) is true, for classifier-free guidance."""
        drop_B = torch.tensor(drop, device=self.labels_B.device)
        return self._replace(labels_B=torch.where(drop_B, config.num_classes, self.labels_B))

    def with_null(self, config: GeneratorConfig) -> Self:
        """2 B images: each one's condition, then the null condition as often."""
        null_B = torch.full_like(self.labels_B, config.num_classes)
        return self._replace(labels_B=torch.cat([self.labels_B, null_B]))

    def padded(self, size: int) -> Self:
        """So many images, the last one's condition again and again."""
        more_B = self.labels_B[-1:].expand(size - self.num_images)
        return self._replace(labels_B=torch.cat([self.labels_B, more_B]))

    def check(self, config: GeneratorConfig) -> None:
        """Refuse classes that the generator does not have; waits for the labels' device.

        Raises:
            ConfigError: there is one.
        """
        for label in self.labels_B.tolist():
            if not 0 <= label < config.num_classes:
                raise ConfigError(
                    f"class {label} is out of range: use 0 to {config.num_classes - 1} "
                    "(generator.num_classes)"
                )


class TextCondition(NamedTuple):
    """Images of captions: the features of their tokens, without padding.

    How long captions are is known on the host, so that nothing waits for a device.
    """

    features_MF: Tensor
    """Rows of the images in turn, as many as `lengths` says; any floating dtype."""
    lengths: tuple[int, ...]
    """Rows of each image, at least one. The last one predicts the first image token."""
    hidden: tuple[bool, ...]
    """Whether an image's last row is padding, which sees the caption and itself and is seen by no
    other; the published weights have it so (see `text_encoder.padding`)."""
    null_TF: Tensor
    """Rows of the empty caption."""
    null_hidden: bool
    """`hidden` of the empty caption."""

    @property
    def num_images(self) -> int:
        """Images B."""
        return len(self.lengths)

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        return self._replace(
            features_MF=self.features_MF.to(device, non_blocking=True),
            null_TF=self.null_TF.to(device, non_blocking=True),
        )

    def split(self, size: int) -> Iterator[Self]:
        """Parts of at most so many images."""
        rows = self.features_MF.split(self.lengths)
        for start in range(0, self.num_images, size):
            images = slice(start, start + size)
            yield self._of(rows[images], self.hidden[images])

    def dropped(self, drop: Sequence[bool], config: GeneratorConfig) -> Self:
        """The null condition where `drop` is true, for classifier-free guidance."""
        rows = zip(self.features_MF.split(self.lengths), drop, strict=True)
        hidden = zip(self.hidden, drop, strict=True)
        return self._of(
            [self.null_TF if dropped else features for features, dropped in rows],
            [self.null_hidden if dropped else own for own, dropped in hidden],
        )

    def with_null(self, config: GeneratorConfig) -> Self:
        """2 B images: each one's condition, then the null condition as often."""
        null = [self.null_TF] * self.num_images
        hidden = [*self.hidden, *[self.null_hidden] * self.num_images]
        return self._of([*self.features_MF.split(self.lengths), *null], hidden)

    def padded(self, size: int) -> Self:
        """So many images, with the empty caption in the new ones."""
        more = size - self.num_images
        rows = [*self.features_MF.split(self.lengths), *[self.null_TF] * more]
        return self._of(rows, [*self.hidden, *[self.null_hidden] * more])

    def check(self, config: GeneratorConfig) -> None:
        """Refuse features of another text encoder.

        Raises:
            ConfigError: their width is not the generator's.
        """
        width = self.features_MF.shape[-1]
        if width != config.text_width:
            raise ConfigError(
                f"the text encoder's features are {width} wide, and the generator takes "
                f"generator.text_width={config.text_width}"
            )

    def _of(self, rows: Sequence[Tensor], hidden: Sequence[bool]) -> Self:
        return self._replace(
            features_MF=torch.cat(list(rows)),
            lengths=tuple(map(len, rows)),
            hidden=tuple(hidden),
        )


Condition = ClassCondition | TextCondition
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
