"""Image bytes to RGB pixels of the training size. PIL only: no torch."""

import io
import struct
import warnings

import numpy as np
from PIL import Image

MAX_ASPECT = 50
"""Longer images are refused: resized by their short side they would be enormous."""

_PIL_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    OverflowError,
    struct.error,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    ZeroDivisionError,
    Image.DecompressionBombError,
)
"""What PIL's plugins raise for bytes that are no image, or a damaged one."""

# PIL's own warning has a fixed limit; `max_pixels` is ours, and checked for every image.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class BadImageError(ValueError):
    """Bytes that do not decode to an acceptable image; the message says why.

    Attributes:
        kind: the same in a word: undecodable, too-large or too-long.
    """

    def __init__(self, reason: str, kind: str = "undecodable") -> None:
        super().__init__(reason)
        self.kind = kind


def decode_image(data: bytes, max_pixels: int) -> Image.Image:
    """Decode to RGB at full resolution (no DCT scaling: that would change pixels).

    Args:
        data: an encoded image.
        max_pixels: larger images are refused by their header, before decoding.

    Raises:
        BadImageError: empty, too large, too long, not an image, truncated or damaged.
    """
    if not data:
        raise BadImageError("empty file")
    try:
        image = Image.open(io.BytesIO(data))
        check_size(*image.size, max_pixels)
        image.load()
        return _to_rgb(image)
    except BadImageError:
        raise
    except _PIL_ERRORS as error:
        why = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        # PIL names the in-memory file by its address, which no two runs share.
        raise BadImageError(f"does not decode: {why.split(' <_io')[0]}") from None


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise BadImageError for an image that is too large or too long to be decoded."""
    if width * height > max_pixels:
        reason = f"{width} x {height} pixels exceed max_pixels = {max_pixels}"
        raise BadImageError(reason, "too-large")
    if max(width, height) > MAX_ASPECT * min(width, height):
        reason = f"{width} x {height} pixels: longer than {MAX_ASPECT} to 1"
        raise BadImageError(reason, "too-long")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # PIL clips 16-bit greys at 255; their high byte is the picture.
        high = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255)
        image = Image.fromarray(high.astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def resize_short_side(image: Image.Image, size: int) -> Image.Image:
    """Bicubic (antialiased) resize so that the short side is `size`; the long side rounds down."""
    target = size_by_short_side(*image.size, size)
    return image if target == image.size else image.resize(target, Image.Resampling.BICUBIC)


def size_by_short_side(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height with a short side of `size`; the long side rounds down."""
    short = min(width, height)
    return max(size, size * width // short), max(size, size * height // short)


def crop(
    image: Image.Image, size: int, *, left: float = 0.5, top: float = 0.5, flip: bool = False
) -> Image.Image:
    """A size x size crop, and a horizontal flip.

    Args:
        image: both sides at least `size`.
        size: side of the crop, pixels.
        left: position in [0, 1) among the possible left edges; 0.5: the centre.
        top: the same for the upper edge.
        flip: whether to mirror left and right.
    """
    width, height = image.size
    x, y = int(left * (width - size + 1)), int(top * (height - size + 1))
    if (width, height) != (size, size):
        image = image.crop((x, y, x + size, y + size))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image
