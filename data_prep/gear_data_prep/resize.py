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
        small = _FILTERS[settings.filter](image, settings.short_side, max_pixels)
    except (ValueError, BadImageError) as error:
        raise BadSampleError("undecodable", f"does not decode: {error}") from None
    data = simplejpeg.encode_jpeg(
        small, quality=settings.quality, colorsubsampling=settings.subsampling
    )
    return CheckedImage(data, "jpg", small.shape[1], small.shape[0])


def _decode_jpeg(image: CheckedImage, colours: str) -> np.ndarray | None:
    """uint8 (H, W, C), the pixels that PIL decodes; None: PIL has to."""
    if image.suffix != "jpg":
        return None
    try:
        return simplejpeg.decode_jpeg(image.data, colours, strict=False)
    except (ValueError, KeyError):
        return None  # rare subsamplings and colours of ink


def _bicubic(image: CheckedImage, side: int, max_pixels: int) -> np.ndarray:
    pixels = _decode_jpeg(image, "RGBX")
    if pixels is None:
        picture = decode_image(image.data, max_pixels)
    else:
        # Four bytes a pixel are PIL's own layout, which it takes over without unpacking.
        size = (pixels.shape[1], pixels.shape[0])
        picture = Image.frombuffer("RGBX", size, pixels, "raw", "RGBX", 0, 1).convert("RGB")
    return np.ascontiguousarray(resize_short_side(picture, side))


def _area(image: CheckedImage, side: int, max_pixels: int) -> np.ndarray:
    import cv2

    cv2.setNumThreads(1)  # every process has a core of its own
    pixels = _decode_jpeg(image, "RGB")
    if pixels is None:
        pixels = np.ascontiguousarray(decode_image(image.data, max_pixels))
    height, width = pixels.shape[:2]
    short = min(height, width)
    target = max(side, side * width // short), max(side, side * height // short)
    return cv2.resize(pixels, target, interpolation=cv2.INTER_AREA)


_FILTERS = {"bicubic": _bicubic, "area": _area}
