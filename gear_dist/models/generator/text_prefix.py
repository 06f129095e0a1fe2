"""Captions run once, packed; what image tokens see of them is kept for decoding.

On the right of as many places as the longest needs, so that all images' tokens have the same places
after them. Shapes: see `text_blocks`; R rows of a batch, P places.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from gear_dist.models.generator.packing import PackedRows
from gear_dist.models.generator.prefix import Prefix


def read_captions(blocks: Iterable[nn.Module], text_MD: Tensor, rows: PackedRows) -> Prefix:
    """Run embedded captions through a generator's blocks.

    Args:
        blocks: all of them.
        text_MD: embedded captions.
        rows: where these are, without image tokens.
    """
    numbers, images, left = rows.visible()
    num_places = max(1, max(left, default=0))
    where = [
        torch.tensor(part, dtype=torch.int64, device=text_MD.device)
        for part in (numbers, images, [num_places - more for more in left])
    ]
    keys: list[Tensor] = []
    values: list[Tensor] = []
    rows.on_keys = _keeper(keys, values, where, rows.num_images, num_places)
    x_MD = rows.pack(text_MD, text_MD.new_empty(rows.num_images, 0, text_MD.shape[1]))
    for block in blocks:
        x_MD = block(x_MD, rows)
    starts = [num_places] * rows.num_images
    for image, more in zip(images, left, strict=True):
        starts[image] = min(starts[image], num_places - more)
    return Prefix(
        input_RD=None,
        hidden_RD=rows.predicting(x_MD)[:, 0],
        keys=tuple(keys),
        values=tuple(values),
        starts=tuple(starts),
    )


def _keeper(
    keys: list[Tensor], values: list[Tensor], where: list[Tensor], num_rows: int, num_places: int
) -> Callable[[Tensor, Tensor], None]:
    """Adds a block's keys and values (R, H, P, h) to the lists."""
    numbers_N, images_N, places_N = where

    def keep(keys_MHh: Tensor, values_MHh: Tensor) -> None:
        for kept, found_MHh in ((keys, keys_MHh), (values, values_MHh)):
            _, heads, width = found_MHh.shape
            into = found_MHh.new_zeros(num_rows, heads, num_places, width)
            into[images_N, :, places_N] = found_MHh[numbers_N]
            kept.append(into)

    return keep
