"""Images at a smaller size: resized once, when the shards are made."""

from typing import NamedTuple

import numpy as np
import simplejpeg

from gear_data_prep.images.checks import CheckedImage, to_pixels
from gear_data_prep.images.resample import resample
from gear_data_prep.samples import BadSampleError
from gear_dist.config.colour import WHITE, Colour
from gear_dist.data.images import BadImageError, decode_image, decode_jpeg, size_by_short_side


class ResizeSettings(NamedTuple):
    """How images are resized; part of the plan."""

    short_side: int = 0
    """Pixels; 0: images are copied as they are. Smaller images are never enlarged."""
    filter: str = "bicubic"
    """bicubic: PIL's antialiased one; area: the mean over the pixels that a new one covers,
    faster."""
    quality: int = 98
    """JPEG quality of the result."""
    subsampling: str = "444"
    """Chroma: 444 keeps all of it; 420 halves it both ways, for smaller files."""
    keep_original: bool = False
    """Whether the original stays in the shard, as KEY.original.SUFFIX."""


def resize_image(
    image: CheckedImage, settings: ResizeSettings, max_pixels: int, background: Colour = WHITE
) -> CheckedImage:
    """The image with its short side at the wanted length, as JPEG; itself where it is smaller.

    Raises:
        BadSampleError: it does not decode.
    """
    if min(image.width, image.height) <= settings.short_side:
        return image
    pixels = image.pixels if image.pixels is not None else _decode(image, max_pixels, background)
    width, height = size_by_short_side(pixels.shape[1], pixels.shape[0], settings.short_side)
    small = resample(pixels, width, height, settings.filter)
    data = simplejpeg.encode_jpeg(
        small, quality=settings.quality, colorspace="RGBX", colorsubsampling=settings.subsampling
    )
    return CheckedImage(data, "jpg", width, height, odd=image.odd)


def _decode(image: CheckedImage, max_pixels: int, background: Colour) -> np.ndarray:
    """uint8 (H, W, 4), upright, the pixels that PIL decodes."""
    if image.suffix == "jpg":
        try:
            return decode_jpeg(image.data, "RGBX", strict=False)
        except (ValueError, KeyError):
            pass  # rare subsamplings and colours of ink are for PIL
    try:
        return to_pixels(decode_image(image.data, max_pixels, background))
    except BadImageError as error:
        raise BadSampleError("undecodable", f"does not decode: {error}") from None
