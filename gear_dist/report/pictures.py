"""Grids as data URIs, kept small enough that a page of a long run still opens on a phone."""

import base64
import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

_LARGEST_SIDE = 1600
_HISTORY_SIDE = 560


class Picture(NamedTuple):
    """An image that needs no file: address and size in pixels."""

    uri: str
    width: int
    height: int


def embed_picture(path: Path, *, small: bool = False) -> Picture | None:
    """The image as lossless WebP or PNG, whichever is shorter; `small`: as a lossy thumbnail.

    Returns:
        None where the file is missing or is not an image that decodes.
    """
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGBA")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError):
        return None
    side = _HISTORY_SIDE if small else _LARGEST_SIDE
    # Grids repeat pixels: a shrunk one is smoothed only where it is larger than the page.
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    options = {"quality": 82, "method": 4} if small else {"lossless": True, "method": 4}
    data = _encode(image, "WEBP", **options)
    uri = f"data:image/webp;base64,{base64.b64encode(data).decode()}"
    return Picture(uri, image.width, image.height)


def _encode(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def spread(count: int, limit: int) -> list[int]:
    """At most `limit` indices of `count` items, evenly spread, first and last among them."""
    if count <= limit:
        return list(range(count))
    return sorted({round(i * (count - 1) / (limit - 1)) for i in range(limit)})
