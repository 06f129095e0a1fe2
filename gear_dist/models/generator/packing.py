"""Where the rows of a batch of captioned images are, when no padding is among them.

The rows of all captions come first, then those of all images, both with the images in the order of
their captions' lengths: images of equal length are neighbours, and one attention call serves them
without a mask.

Shapes: B images, T rows of a caption, l image tokens of an image, M rows of all captions and
images, G images of one group, D model width.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import accumulate, groupby
from typing import NamedTuple

import torch
from torch import Tensor

from gear_dist.models.generator.conditioning import TextCondition


class Group(NamedTuple):
    """Images whose captions have the same length."""

    images: slice
    """In the packed order."""
    text: slice
    """Rows of their captions."""
    length: int
    """Rows T of each caption."""
    num_visible: int
    """Rows of each caption that others see: all, or all but the last (`TextCondition.hidden`)."""


class PackedRows:
    """The rows of one batch.

    Attributes:
        num_text: rows of all captions.
        num_tokens: image tokens l of each image.
        table: rotary rows (l, h / 2, 2) of the image tokens.
        on_keys: takes a block's keys and values (M, H, h) of all rows, as they are attended to;
            None: nobody keeps them.
    """

    def __init__(self, condition: TextCondition, num_tokens: int, table: Tensor):
        self.num_images = condition.num_images
        self.num_tokens = num_tokens
        self.num_text = sum(condition.lengths)
        self.table = table
        self.on_keys: Callable[[Tensor, Tensor], None] | None = None
        self._lengths, self._hidden = condition.lengths, condition.hidden
        self._order = sorted(range(self.num_images), key=self._kind)

    def _kind(self, image: int) -> tuple[int, bool]:
        return self._lengths[image], self._hidden[image]

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """All images, by length."""
        return tuple(self._find_groups())

    def _find_groups(self) -> Iterator[Group]:
        image = row = 0
        for (length, hidden), members in groupby(self._order, key=self._kind):
            count = len(list(members))
            images = slice(image, image + count)
            yield Group(images, slice(row, row + count * length), length, length - hidden)
            image, row = image + count, row + count * length

    def pack(self, text_MD: Tensor, tokens_BlD: Tensor) -> Tensor:
        """Rows (M, D) of captions, whose rows are in the images' order, and of image tokens."""
        starts = [0, *accumulate(self._lengths)]
        rows = [row for image in self._order for row in range(starts[image], starts[image + 1])]
        order = torch.tensor(self._order, device=tokens_BlD.device)
        rows_M = torch.tensor(rows, device=tokens_BlD.device)
        return torch.cat([text_MD[rows_M], tokens_BlD[order].flatten(0, 1)])

    def predicting(self, x_MD: Tensor) -> Tensor:
        """Rows that predict image tokens, (B, 1 + l, D): each caption's last, and the tokens.

        The images are in their own order again.
        """
        ends = list(accumulate(self._lengths[image] for image in self._order))
        places = sorted(range(self.num_images), key=self._order.__getitem__)
        last_B = torch.tensor([ends[place] - 1 for place in places], device=x_MD.device)
        places_B = torch.tensor(places, device=x_MD.device)
        _, tokens_BlD = self.split(x_MD)
        return torch.cat([x_MD[last_B][:, None], tokens_BlD[places_B]], dim=1)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the captions' rows and of the image tokens (B, l, ...), in packed order."""
        tokens = x[self.num_text :].unflatten(0, (self.num_images, self.num_tokens))
        return x[: self.num_text], tokens

    def visible(self) -> tuple[list[int], list[int], list[int]]:
        """Of all caption rows that others see: their number among the rows, their image, and how
        many visible rows of their caption are from there to its end."""
        rows: list[int] = []
        images: list[int] = []
        left: list[int] = []
        for group in self.groups:
            for place in range(group.images.start, group.images.stop):
                start = group.text.start + (place - group.images.start) * group.length
                rows += range(start, start + group.num_visible)
                images += [self._order[place]] * group.num_visible
                left += range(group.num_visible, 0, -1)
        return rows, images, left

    def caption(self, x_MD: Tensor, image: int) -> Tensor:
        """Rows (T, D) of an image's caption."""
        place = self._order.index(image)
        start = sum(self._lengths[other] for other in self._order[:place])
        return x_MD[start : start + self._lengths[image]]
