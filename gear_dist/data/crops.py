"""Encoded images to square crops of the training size."""

from typing import Literal, NamedTuple

import numpy as np
import simplejpeg
import torch
from torch.nn import functional as F

from gear_dist.config.colour import WHITE, Colour
from gear_dist.data.images import check_size, decode_image, decode_jpeg, size_by_short_side

_SAME_AS_PIL = ("YCbCr", "Gray", "RGB")
"""Colour spaces of JPEGs that libjpeg-turbo itself converts to RGB."""
Decoding = Literal["exact", "fast"]


class CropSettings(NamedTuple):
    """What is the same for all images."""

    size: int
    """Side of the crop, pixels."""
    max_pixels: int = 64_000_000
    """Larger images are refused by their header, before decoding."""
    decoding: Decoding = "exact"
    """exact: at full resolution; fast: JPEGs of twice the size and more by scaled DCT."""
    background: Colour = WHITE
    """What shows through transparent pixels."""


class Placement(NamedTuple):
    """Where a crop is taken."""

    left: float = 0.5
    """Position in [0, 1) among the possible left edges; 0.5: the centre."""
    top: float = 0.5
    flip: bool = False
    """Whether left and right are mirrored."""


def take_crop(data: bytes, settings: CropSettings, placement: Placement) -> np.ndarray:
    """Decode upright, resize the short side to the crop's (antialiased bicubic), crop, flip.

    Pixels are those of PIL's decode, `resize_short_side` and `crop` to within one grey level; with
    decoding=fast, of images at least twice the size, they are not.

    Returns:
        uint8 (size, size, 3); may be a view.

    Raises:
        BadImageError: see `decode_image`.
    """
    size = settings.size
    pixels = _decode(data, settings)
    height, width = pixels.shape[:2]
    target = size_by_short_side(width, height, size)
    if target != (width, height):
        pixels = _resize(pixels, *target)
    x = int(placement.left * (target[0] - size + 1))
    y = int(placement.top * (target[1] - size + 1))
    taken = pixels[y : y + size, x : x + size]
    return taken[:, ::-1] if placement.flip else taken


def _decode(data: bytes, settings: CropSettings) -> np.ndarray:
    """uint8 (H, W, 3).

    PIL spends a third of a JPEG's time on copies, so JPEGs go to libjpeg-turbo directly, which
    gives the same pixels. What that finds fault with, or is of another kind, is for PIL to judge.
    """
    if data[:3] == b"\xff\xd8\xff":
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            check_size(width, height, settings.max_pixels)
            if colours not in _SAME_AS_PIL:
                raise ValueError(colours)
            if settings.decoding == "fast":
                least = min(settings.size, height, width)
                # Only halves, quarters and eighths have fast code.
                return decode_jpeg(data, min_height=least, min_width=least, min_factor=2)
            return decode_jpeg(data)
        except ValueError:
            pass
    return np.array(decode_image(data, settings.max_pixels, settings.background))


def _resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bicubic with antialiasing; torch's vectorised code, a quarter of PIL's time."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    done = F.interpolate(image, (height, width), mode="bicubic", antialias=True)
    return done[0].permute(1, 2, 0).numpy()
