"""Conditions (classes, captions) and their embedding; dropping them for classifier-free guidance.

Shapes: B images, P positions in front of an image's tokens, M rows of the captions of all images,
D model width, F width of a text encoder's features.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
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

    def embedded(self, table: nn.Module) -> Tensor:
        """Rows (B, D) of a class table."""
        return table(self.labels_B)

    def mixed(self, other: "ClassCondition", shares: Sequence[float]) -> "MixedClassCondition":
        """On the line from each image's embedding, share 0, to that of `other`, share 1."""
        shares_B = torch.tensor(shares, dtype=torch.float32, device=self.labels_B.device)
        return MixedClassCondition(self, other, shares_B)


class MixedClassCondition(NamedTuple):
    """Images between two classes: embedding (1 - share) e(first) + share e(second).

    The ends are the classes themselves, bit for bit.
    """

    first: ClassCondition
    second: ClassCondition
    shares_B: Tensor
    """fp32, 0 to 1."""

    @property
    def num_images(self) -> int:
        """Images B."""
        return len(self.shares_B)

    def to(self, device: torch.device) -> Self:
        """See `ClassCondition.to`."""
        shares_B = self.shares_B.to(device, non_blocking=True)
        return self._replace(
            first=self.first.to(device), second=self.second.to(device), shares_B=shares_B
        )

    def split(self, size: int) -> Iterator[Self]:
        """See `ClassCondition.split`."""
        parts = zip(
            self.first.split(size), self.second.split(size), self.shares_B.split(size), strict=True
        )
        for first, second, shares_B in parts:
            yield self._replace(first=first, second=second, shares_B=shares_B)

    def dropped(self, drop: Sequence[bool], config: GeneratorConfig) -> Self:
        """See `ClassCondition.dropped`."""
        first, second = self.first.dropped(drop, config), self.second.dropped(drop, config)
        return self._replace(first=first, second=second)

    def with_null(self, config: GeneratorConfig) -> Self:
        """See `ClassCondition.with_null`."""
        return self._replace(
            first=self.first.with_null(config),
            second=self.second.with_null(config),
            shares_B=torch.cat([self.shares_B, self.shares_B]),
        )

    def padded(self, size: int) -> Self:
        """See `ClassCondition.padded`."""
        more_B = self.shares_B[-1:].expand(size - self.num_images)
        return self._replace(
            first=self.first.padded(size),
            second=self.second.padded(size),
            shares_B=torch.cat([self.shares_B, more_B]),
        )

    def check(self, config: GeneratorConfig) -> None:
        """See `ClassCondition.check`."""
        self.first.check(config)
        self.second.check(config)

    def embedded(self, table: nn.Module) -> Tensor:
        """Rows (B, D)."""
        first_BD, second_BD = self.first.embedded(table), self.second.embedded(table)
        # lerp is exact at both of its ends.
        return torch.lerp(first_BD, second_BD, self.shares_B[:, None].to(first_BD.dtype))


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

    def mixed(self, other: Self, shares: Sequence[float]) -> Self:
        """On the line from each image's features, share 0, to those of `other`, share 1.

        Between the ends, the shorter caption's rows are stretched to the longer one's number. Each
        end is its own caption, bit for bit.
        """
        ones, others = self.features_MF.split(self.lengths), other.features_MF.split(other.lengths)
        rows, hidden = [], []
        for image, share in enumerate(shares):
            one = (ones[image], self.hidden[image])
            two = (others[image], other.hidden[image])
            features, last_hidden = _mix_captions(one, two, share)
            rows.append(features)
            hidden.append(last_hidden)
        return self._of(rows, hidden)

    def _of(self, rows: Sequence[Tensor], hidden: Sequence[bool]) -> Self:
        return self._replace(
            features_MF=torch.cat(list(rows)),
            lengths=tuple(map(len, rows)),
            hidden=tuple(hidden),
        )


def _mix_captions(
    one: tuple[Tensor, bool], two: tuple[Tensor, bool], share: float
) -> tuple[Tensor, bool]:
    """Rows between those of two captions, and whether the last is hidden; each likewise."""
    if share in (0, 1):
        return two if share else one
    hidden = one[1] or two[1]
    # A padding slot mixes with the other's padding slot, or else with its last word.
    bodies = [rows[:-1] if last and len(rows) > 1 else rows for rows, last in (one, two)]
    most = max(map(len, bodies))
    mixed = torch.lerp(_stretched(bodies[0], most), _stretched(bodies[1], most), share)
    if hidden:
        mixed = torch.cat([mixed, torch.lerp(one[0][-1:], two[0][-1:], share)])
    return mixed, hidden


def _stretched(rows_TF: Tensor, length: int) -> Tensor:
    """So many rows, on the lines between neighbours; the first and the last stay."""
    if len(rows_TF) == length:
        return rows_TF
    wide = F.interpolate(rows_TF.T[None], size=length, mode="linear", align_corners=True)
    return wide[0].T


Condition = ClassCondition | MixedClassCondition | TextCondition
"""Every kind of condition has the members of `ClassCondition`, but for those of class tables."""


class ClassEmbedding(nn.Module):
    """Class table with a null row (index num_classes) where classes are ever dropped."""

    num_positions = 1
    """Positions P."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        rows = config.num_classes + (config.class_dropout > 0)
        self.embedding_table = nn.Embedding(rows, config.width)

    def forward(self, condition: ClassCondition | MixedClassCondition) -> Tensor:
        """(B, P, D)."""
        return condition.embedded(self.embedding_table)[:, None]
