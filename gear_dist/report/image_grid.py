"""Grids of images as PNG files."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gear_dist.storage.atomic import atomic_file

_GAP = 4
_CAPTION_HEIGHT = 19
_FONT_SIZE = 14
# Gaps are transparent and captions mid-grey: legible on a light page and on a dark one.
_BACKGROUND = (255, 255, 255, 0)
_INK = (122, 122, 122, 255)
_MIN_TILE = 96


def save_grid(
    images: Any,
    path: str | Path,
    columns: int = 8,
    *,
    captions: Sequence[str] | None = None,
    scale: int | None = None,
) -> None:
    """Write images, row by row, as one PNG, whole or not at all.

    Args:
        images: uint8, (B, 3, H, W) or (B, H, W, 3), a NumPy array or a tensor on any device
            (copied to the host).
        path: the PNG; its folder is made.
        columns: images a row.
        captions: a line under each image, cut to its width.
        scale: integer magnification by pixel repetition; None: as much as brings the side to
            at least 96 pixels.

    Raises:
        ValueError: another dtype or shape, or a number of captions that does not fit.
        StorageError: the disk refuses.
    """
    grid = compose_grid(images, columns, captions=captions, scale=scale)
    with atomic_file(Path(path)) as stream:
        grid.save(stream, format="PNG", optimize=True)


def compose_grid(
    images: Any,
    columns: int = 8,
    *,
    captions: Sequence[str] | None = None,
    scale: int | None = None,
) -> Image.Image:
    """The grid of `save_grid` as an RGBA image, its gaps transparent."""
    array = channels_last(images)
    if captions is not None and len(captions) != len(array):
        raise ValueError(f"{len(captions)} captions for {len(array)} images")
    if columns < 1 or (scale is not None and scale < 1):
        raise ValueError(f"columns={columns} and scale={scale} must be at least 1")
    columns = min(columns, len(array))
    factor = scale or magnification(min(array.shape[1:3]))
    array = array.repeat(factor, axis=1).repeat(factor, axis=2)
    height, width = array.shape[1:3]
    pitch = height + _GAP + (_CAPTION_HEIGHT if captions is not None else 0)
    rows = math.ceil(len(array) / columns)
    size = (columns * (width + _GAP) + _GAP, rows * pitch + _GAP)
    grid = Image.new("RGBA", size, _BACKGROUND)
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(_FONT_SIZE)
    for index, image in enumerate(array):
        row, column = divmod(index, columns)
        left, top = _GAP + column * (width + _GAP), _GAP + row * pitch
        grid.paste(Image.fromarray(image), (left, top))
        if captions is not None:
            text = fit_text(captions[index], width, draw, font)
            draw.text((left, top + height + 1), text, fill=_INK, font=font)
    return grid


def pair_rows(upper: np.ndarray, lower: np.ndarray, columns: int = 8) -> np.ndarray:
    """Interleave two batches row by row: a row of `upper`, the same images of `lower` below it.

    Args:
        upper: (B, ...) such as originals; B is cut to whole rows where it exceeds one row.
        lower: the same shape, such as reconstructions.
        columns: images a row; pass the same to `save_grid`.

    Returns:
        (2 B, ...).
    """
    if upper.shape != lower.shape:
        raise ValueError(f"shapes differ: {upper.shape} and {lower.shape}")
    count = len(upper) if len(upper) <= columns else len(upper) // columns * columns
    starts = range(0, count, columns)
    rows = [batch[i : min(i + columns, count)] for i in starts for batch in (upper, lower)]
    return np.concatenate(rows)


def magnification(side: int) -> int:
    """By which pixels are repeated, so that a side has at least 96."""
    return max(1, math.ceil(_MIN_TILE / side))


def channels_last(images: Any) -> np.ndarray:
    """Images as (B, H, W, 3) on the host; see `save_grid`.

    Raises:
        ValueError: another dtype or shape.
    """
    array = images if isinstance(images, np.ndarray) else images.detach().cpu().numpy()
    if array.dtype != np.uint8:
        raise ValueError(f"images have dtype {array.dtype}: give uint8, 0 to 255")
    if array.ndim != 4 or 3 not in (array.shape[1], array.shape[3]) or 0 in array.shape:
        raise ValueError(f"images have shape {array.shape}: give (B, 3, H, W) or (B, H, W, 3)")
    return array.transpose(0, 2, 3, 1) if array.shape[1] == 3 else array


def fit_text(text: str, width: float, draw: ImageDraw.ImageDraw, font: Any) -> str:
    """A text on one line, cut to a width in pixels, with an ellipsis where something is missing."""
    text = " ".join(text.split())
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text + "…"
