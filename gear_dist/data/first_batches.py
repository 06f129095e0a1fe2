"""The first samples of a validation corpus, which grids show."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import torch

from gear_dist.config.data import DataConfig
from gear_dist.data.loader import Batch, build_loader


def first_images(data: DataConfig, count: int) -> torch.Tensor:
    """The first images of the validation corpus (else the training one), centre crops.

    Returns:
        uint8 (B, 3, H, W), B at most `count`.
    """
    return torch.cat([batch.images for batch in _first(data, count)])


def first_captions(data: DataConfig, count: int) -> tuple[str, ...]:
    """The first caption of each of those images."""
    with_captions = replace(data, captions="first")
    return tuple(caption for batch in _first(with_captions, count) for caption in batch.captions)


def _first(data: DataConfig, count: int) -> Iterator[Batch]:
    loader = build_loader(
        data,
        data.validation or data.train,
        batch_size=1,
        rank=0,
        world_size=1,
        seed=0,
        num_classes=None,
    )
    try:
        yield from islice(loader.validation_batches(count), count)
    finally:
        loader.close()
