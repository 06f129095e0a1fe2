"""Images at a smaller size: resized once, when the shards are made."""

from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from gear_data_prep.image_checks import CheckedImage
from gear_data_prep.samples import BadSampleError
from gear_dist.data.images import BadImageError, decode_image, resize_short_side


class ResizeSettings(NamedTuple):
    """How images are resized; part of the plan."""

    short_side: int = 0
    """Pixels; 0: images are copied as they are. Smaller images are never enlarged."""
    filter: str = "bicubic"
    """bicubic: PIL's antialiased one; area: OpenCV's mean over the pixels that a new one covers,
    faster."""
    quality: int = 98
    """JPEG quality of the result."""
    subsampling: str = "444"
    """Chroma: 444 keeps all of it; 420 halves it both ways, for smaller files."""
    keep_original: bool = False
    """Whether the original stays in the shard, as KEY.original.SUFFIX."""


def resize_image(image: CheckedImage, settings: ResizeSettings, max_pixels: int) -> CheckedImage:
    """The image with its short side at the wanted length, as JPEG; itself where it is smaller.

    Raises:
        BadSampleError: it does not decode.
    """
    if min(image.width, image.height) <= settings.short_side:
        return image
    try:
        pixels = _decode(image, max_pixels)
    except (ValueError, BadImageError) as error:
        raise BadSampleError("undecodable", f"does not decode: {error}") from None
    small = _FILTERS[settings.filter](pixels, settings.short_side)
    data = simplejpeg.encode_jpeg(
        small, quality=settings.quality, colorsubsampling=settings.subsampling
    )
    return CheckedImage(data, "jpg", small.shape[1], small.shape[0])


def _decode(image: CheckedImage, max_pixels: int) -> np.ndarray:
    """uint8 (H, W, 3), the pixels that PIL decodes."""
    if image.suffix == "jpg":
        try:
            return simplejpeg.decode_jpeg(image.data, "RGB", strict=False)
        except (ValueError, KeyError):
            pass  # rare subsamplings and colours of ink, which PIL reads
    return np.ascontiguousarray(decode_image(image.data, max_pixels))


def _bicubic(pixels: np.ndarray, side: int) -> np.ndarray:
    return np.ascontiguousarray(resize_short_side(Image.fromarray(pixels), side))


def _area(pixels: np.ndarray, side: int) -> np.ndarray:
    import cv2

    cv2.setNumThreads(1)  # every process has a core of its own
    height, width = pixels.shape[:2]
    short = min(height, width)
    target = max(side, side * width // short), max(side, side * height // short)
    return cv2.resize(pixels, target, interpolation=cv2.INTER_AREA)


_FILTERS = {"bicubic": _bicubic, "area": _area}
