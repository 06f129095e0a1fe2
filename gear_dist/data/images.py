"""Image bytes to RGB pixels of the training size: the one place where that is decided. No torch.

Transparent pixels are composited over a background and the EXIF orientation is applied,
whoever decodes: sharding, loading, previews, commands.
"""

import io
import struct
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import simplejpeg
from PIL import Image

from gear_dist.config.colour import WHITE, Colour
from gear_dist.formatting import first_line

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
_Result = TypeVar("_Result")
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_WORDS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
"""Chunks that no pixel depends on, at which PIL gives up where they are long or damaged."""
_EXIF = b"Exif\0\0"
_ORIENTATION = 0x112
_MAX_SEGMENTS = 500
"""Segments of a JPEG's header that are looked through."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation."""

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


def decode_image(data: bytes, max_pixels: int, background: Colour = WHITE) -> Image.Image:
    """Decode to upright RGB at full resolution (no DCT scaling: that would change pixels).

    Args:
        data: an encoded image.
        max_pixels: larger images are refused by their header, before decoding.
        background: what shows through transparent pixels.

    Raises:
        BadImageError: empty, too large, too long, not an image, truncated or damaged.
    """
    return to_rgb(load_image(data, max_pixels), background)


def load_image(data: bytes, max_pixels: int) -> Image.Image:
    """The decoded image in its own mode, not yet upright (but TIFF, which PIL turns itself).

    Raises:
        BadImageError: as `decode_image`.
    """

    def load(image: Image.Image) -> Image.Image:
        check_size(*image.size, max_pixels)
        image.load()
        hidden = image.info.get("transparency")
        if isinstance(hidden, tuple) and max(hidden) > 255:
            # Of 16-bit colours PIL keeps the high bytes, but not of the transparent one.
            image.info["transparency"] = tuple(value >> 8 for value in hidden)
        return image

    if not data:
        raise BadImageError("empty file")
    try:
        return with_image(data, load)
    except _PIL_ERRORS as error:
        raise _undecodable(error) from None


def with_image(data: bytes, use: Callable[[Image.Image], _Result]) -> _Result:
    """What `use` makes of the image that PIL opens; a PNG is retried without its text."""
    try:
        return use(Image.open(io.BytesIO(data)))
    except BadImageError:
        raise
    except _PIL_ERRORS:
        bare = without_words(data)
        if len(bare) == len(data):
            raise
        return use(Image.open(io.BytesIO(bare)))


def without_words(data: bytes) -> bytes:
    """A PNG without its texts and colour profile; anything else as it is."""
    if not data.startswith(_PNG):
        return data
    kept, position = [_PNG], len(_PNG)
    while position < len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 8] not in _PNG_WORDS:
            kept.append(data[position:end])
        position = end
    return b"".join(kept)


def to_rgb(image: Image.Image, background: Colour = WHITE) -> Image.Image:
    """A loaded image as upright RGB; BadImageError where its numbers have no known scale."""
    orientation = pil_orientation(image)
    try:
        if image.mode[0] in "IF":
            image = _to_grey(image)
        if image.has_transparency_data:
            image = _composite(image.convert("RGBA"), background)
        image = image if image.mode == "RGB" else image.convert("RGB")
        turn = _TURNS.get(orientation)
        return image if turn is None else image.transpose(turn)
    except _PIL_ERRORS as error:
        raise _undecodable(error) from None


def decode_jpeg(data: bytes, colours: str = "RGB", **options: Any) -> np.ndarray:
    """A JPEG's upright pixels, uint8 (H, W, channels), by libjpeg-turbo; the same as PIL's.

    Args:
        data: the JPEG.
        colours: one of simplejpeg's colour spaces.
        options: of `simplejpeg.decode_jpeg`.

    Raises:
        ValueError, KeyError: libjpeg-turbo finds fault with it, or does not know its like.
    """
    pixels = simplejpeg.decode_jpeg(data, colours, **options)
    return turn_upright(pixels, jpeg_orientation(data))


def is_transparent(image: Image.Image) -> bool:
    """Whether a loaded image has a pixel that a background shows through.

    Raises:
        BadImageError: its transparency makes no sense.
    """
    if not image.has_transparency_data:
        return False
    try:
        if image.mode[0] in "IF":
            return bool((np.asarray(image) == image.info["transparency"]).any())
        return bool((np.asarray(image.convert("RGBA").getchannel("A")) < 255).any())
    except _PIL_ERRORS as error:
        raise _undecodable(error) from None


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (H, W, C) as their EXIF orientation wants them seen; contiguous where they turn."""
    if orientation == 1:
        return pixels
    turned = pixels if orientation < 5 else pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        turned = turned[::-1]
    if orientation in (2, 3, 6, 7):
        turned = turned[:, ::-1]
    return np.ascontiguousarray(turned)


def jpeg_orientation(data: bytes) -> int:
    """The EXIF orientation in a JPEG's header, 1 to 8; 1, upright, where none is known."""
    position, last = 2, len(data) - 4
    for _ in range(_MAX_SEGMENTS):
        if position > last or data[position] != 0xFF:
            return 1
        marker = data[position + 1]
        if marker == 0xDA:
            return 1
        end = position + 2 + (data[position + 2] << 8 | data[position + 3])
        if marker == 0xE1 and data.startswith(_EXIF, position + 4):
            return exif_orientation(data[position + 4 : end])
        position = end
    return 1


def pil_orientation(image: Image.Image) -> int:
    """The same of an image that PIL has opened."""
    # PIL rotates TIFFs on load; its getexif() also honours XMP, which viewers ignore.
    found = image.info.get("exif")
    return exif_orientation(found) if isinstance(found, bytes) and image.format != "TIFF" else 1


def exif_orientation(exif: bytes) -> int:
    """The orientation in EXIF data, with or without its name before it; 1 where there is none."""
    exif = exif.removeprefix(_EXIF)
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (first,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, first)
        for entry in range(first + 2, first + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, entry)
            if tag == _ORIENTATION:
                return value if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _composite(image: Image.Image, background: Colour) -> Image.Image:
    under = Image.new("RGB", image.size, tuple(background))
    under.paste(image, mask=image)
    return under


def _to_grey(image: Image.Image) -> Image.Image:
    """Greys of more than 8 bits, or fractions from 0 to 1, at 8 bits: L, or LA.

    PIL clips such numbers at 255, which makes most of them white, and fractions black.

    Raises:
        BadImageError: numbers whose scale is not known.
    """
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        if not 0 <= low <= high <= 1:
            raise BadImageError(f"fractions from {low:g} to {high:g}: only 0 to 1 have a scale")
        grey = np.rint(values * 255)
    elif not 0 <= low <= high < 1 << 16:
        raise BadImageError(f"greys from {low:g} to {high:g}: only those of 16 bits have a scale")
    else:
        # Eight bits in numbers of sixteen are common, and would become black.
        grey = values.astype(np.int64) >> (8 if high > 255 else 0)
    found = Image.fromarray(grey.astype(np.uint8))
    hidden = image.info.get("transparency")
    if hidden is not None:
        found.putalpha(Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8)))
    return found


def _undecodable(error: Exception) -> BadImageError:
    if isinstance(error, BadImageError):
        return error
    if isinstance(error, Image.DecompressionBombError):
        return BadImageError(f"too many pixels: {first_line(error)[:80]}", "too-large")
    # PIL names the in-memory file by its address, which no two runs share.
    why = first_line(error)[:120].split(" <_io")[0]
    return BadImageError(f"does not decode: {why}")


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise BadImageError for an image that is too large or too long to be decoded."""
    if width * height > max_pixels:
        reason = f"{width} x {height} pixels exceed max_pixels = {max_pixels}"
        raise BadImageError(reason, "too-large")
    if max(width, height) > MAX_ASPECT * min(width, height):
        reason = f"{width} x {height} pixels: longer than {MAX_ASPECT} to 1"
        raise BadImageError(reason, "too-long")


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
