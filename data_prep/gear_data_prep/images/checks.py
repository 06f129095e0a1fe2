"""Validates image bytes for a shard, and converts them where a policy says so."""

import contextlib
import io
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from gear_data_prep.images.jpeg_codes import COMPLAINTS, CodeFault, read_codes
from gear_data_prep.policies import CONVERT, KEEP, parse_policies
from gear_data_prep.samples import BadSampleError
from gear_dist.config.colour import WHITE, hex_colour, parse_colour
from gear_dist.data.images import (
    BadImageError,
    check_size,
    decode_jpeg,
    is_transparent,
    jpeg_orientation,
    load_image,
    pil_orientation,
    to_rgb,
    with_image,
)
from gear_dist.formatting import first_line

CHECKS = ("header", "decode", "strict")
_MAX_SCANS = 100
_MAX_SCAN_PIXELS = 2_000_000_000
# libjpeg-turbo's remarks on files that are whole: strict mode raises on them as well.
_HARMLESS = ("JFIF", "Adobe")
# TurboJPEG names an error; its binding trips over values that it does not know.
_TURBO_ERRORS = (ValueError, KeyError)
_START, _END, _SCAN = b"\xff\xd8", b"\xff\xd9", b"\xff\xda"
# Neither a stuffed byte of codes, nor a fill byte, nor a marker that stands for itself.
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
_MAX_SEGMENTS = 1000
_HOLE = bytes(512)
_HOLE_FOUND = "a run of zeros among the pixels"
_SMALLEST = {"min_height": 1, "min_width": 1, "min_factor": 1}
# How many codes of each length the AC table of the JPEG standard's annex K.3 has.
_USUAL_TABLE = bytes.fromhex("0002010303020403050504040000017d")
_MAGIC = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
)
_SAME = {"jpeg": "jpg", "jfif": "jpg", "tiff": "tif"}
_FOREIGN = ("gif", "tif")
_REASONS = {
    "transparency": "it has transparent pixels",
    "orientation": "its EXIF orientation is not upright",
}


class ImageSettings(NamedTuple):
    """What an image must be like; part of the plan."""

    check: str = "strict"
    """header: its header is right; decode: PIL decodes it; strict: libjpeg-turbo decodes it
    without a complaint (JPEG; other formats carry checksums or fail in PIL), see `read_codes`."""
    max_pixels: int = 64_000_000
    """More is too large, found by the header, before anything is decoded."""
    max_bytes: int = 64 << 20
    """Longer files are too large."""
    policies: dict[str, str] = parse_policies([])
    """Action by kind."""
    read_codes: bool = False
    """Whether the strict check also reads a JPEG's codes one by one, which takes a C compiler on
    every machine: they can be wrong in ways that no decoder tells."""
    background: str = hex_colour(WHITE)
    """What shows through transparent pixels where pixels are re-encoded."""


class CheckedImage(NamedTuple):
    """An image that may go into a shard."""

    data: bytes
    suffix: str
    width: int
    """Of the upright image, as the height is."""
    height: int
    pixels: np.ndarray | None = None
    """uint8 (H, W, 4), upright; red, green, blue, anything; where they were asked for and are at
    hand."""
    odd: tuple[str, ...] = ()
    """The policies' kinds of what is, or was, odd about it."""


class _Header(NamedTuple):
    width: int
    """Of the upright image, as the height is."""
    height: int
    odd: tuple[str, ...]
    """The policies' kinds of what is odd, as far as a header tells."""
    has_alpha: bool = False
    by_pil: bool = False
    """Whether libjpeg-turbo has no say, because it is another format or a rare JPEG."""


def check_image(
    data: bytes, suffix: str, settings: ImageSettings, *, short_side: int = 0
) -> CheckedImage:
    """The image as it goes into the shard: its own bytes, unless a policy converts it.

    Args:
        data: the encoded image.
        suffix: the format that its source claims; empty: none.
        settings: limits, check and policies.
        short_side: of what is made of the image next: larger ones keep the pixels that the check
            has decoded; 0: none do.

    Raises:
        BadSampleError: it must not go into a shard, and of what kind it is.
    """
    if not data:
        raise BadSampleError("empty", "empty file")
    if len(data) > settings.max_bytes:
        raise BadSampleError("too-large", f"{len(data)} bytes exceed max_bytes")
    found = _sniff(data)
    claimed = _SAME.get(suffix, suffix)
    wrong = claimed and claimed != found
    if wrong and settings.policies["mislabelled"] not in (CONVERT, KEEP):
        raise BadSampleError("mislabelled", f"called {claimed}, but it is {found}")
    header = read_header(data, found)
    _check_size(header.width, header.height, settings.max_pixels)
    image = None
    if found != "jpg" and settings.check != "header":
        image = _load(data, settings.max_pixels)
    odd = _oddities(found, header, image)
    for kind in odd:
        if settings.policies[kind] not in (CONVERT, KEEP):
            raise BadSampleError(kind, _REASONS.get(kind, f"its format or mode: {kind}"))
    every = (*(["mislabelled"] if wrong else []), *odd)
    if any(settings.policies[kind] == CONVERT for kind in odd):
        return _convert(data, found, image, settings)._replace(odd=every)
    name = claimed if wrong and settings.policies["mislabelled"] == KEEP else found
    checked = CheckedImage(data, name, header.width, header.height, odd=every)
    keep_pixels = 0 < short_side < min(header.width, header.height)
    if found == "jpg":
        return checked._replace(pixels=_check_jpeg(data, header, settings, keep_pixels))
    if image is None:
        return checked
    rgb = _rgb(image, settings)
    return checked._replace(pixels=to_pixels(rgb) if keep_pixels else None)


def _oddities(found: str, header: _Header, image: Image.Image | None) -> tuple[str, ...]:
    """Kinds of what is odd; without pixels, what may be transparent is."""
    odd = ["format"] if found in _FOREIGN else []
    odd += header.odd
    with _as_bad_sample():
        if header.has_alpha if image is None else is_transparent(image):
            odd.append("transparency")
    return tuple(odd)


def sniff(data: bytes) -> str:
    """The format that the first bytes say, as a suffix; empty: none that is read."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((suffix for magic, suffix in _MAGIC if data.startswith(magic)), "")


def read_header(data: bytes, found: str) -> _Header:
    """The header of an image of this format.

    Raises:
        BadSampleError: it cannot be read (undecodable), or has more scans than are decoded.
    """
    return _jpeg_header(data) if found == "jpg" else _other_header(data)


def _sniff(data: bytes) -> str:
    found = sniff(data)
    if not found:
        raise BadSampleError("undecodable", "does not decode: no image format that is known")
    return found


def _check_size(width: int, height: int, max_pixels: int) -> None:
    with _as_bad_sample():
        check_size(width, height, max_pixels)


def _jpeg_header(data: bytes) -> _Header:
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except _TURBO_ERRORS:
        return _other_header(data)  # PIL reads rare subsamplings that TurboJPEG does not name
    # Entropy-coded data cannot hold this marker: every scan costs a pass over all pixels.
    scans = data.count(_SCAN)
    most = min(_MAX_SCANS, _MAX_SCAN_PIXELS // max(1, width * height))
    if scans > most and (scans := data.count(_SCAN, 0, _end_of_picture(data))) > most:
        raise BadSampleError("too-large", f"{width} x {height} pixels in {scans} scans")
    odd = ["cmyk"] if colours in ("CMYK", "YCCK") else []
    return _upright_header(width, height, odd, jpeg_orientation(data))


def _upright_header(width: int, height: int, odd: list[str], orientation: int) -> _Header:
    if orientation > 4:
        width, height = height, width
    return _Header(width, height, (*odd, *(["orientation"] if orientation > 1 else [])))


def _check_jpeg(
    data: bytes, header: _Header, settings: ImageSettings, keep_pixels: bool
) -> np.ndarray | None:
    """Its pixels, where they are to be kept and the check decodes them."""
    if settings.check == "decode" or (settings.check == "strict" and header.by_pil):
        image = _rgb(_load(data, settings.max_pixels), settings)
        return to_pixels(image) if keep_pixels else None
    if settings.check == "header":
        return None
    fault = _find_fault(data) if settings.read_codes else None
    if fault is None:
        return _decode_strictly(data, header, settings, keep_pixels)
    if fault:
        _judge(data, header, settings, fault)
    return None


def _find_fault(data: bytes) -> str | None:
    """What is wrong with a JPEG's codes; empty: nothing; None: a decoder has to say."""
    codes = read_codes(data)
    if codes == CodeFault.CLEAN:
        return _HOLE_FOUND if _has_hole(data) else ""
    return COMPLAINTS.get(codes)


def _decode_strictly(
    data: bytes, header: _Header, settings: ImageSettings, keep_pixels: bool
) -> np.ndarray | None:
    """Its pixels, where they are to be kept."""
    # Scaled by 1/8 it still reads every entropy-coded bit, but computes 1/64 of the pixels.
    options = {} if keep_pixels else {**_SMALLEST, "fastdct": True, "fastupsample": True}
    colours = "RGBX" if keep_pixels and not _is_cmyk(header) else _colours(header)
    try:
        pixels = decode_jpeg(data, colours, strict=True, **options)
        fault = _HOLE_FOUND if _has_hole(data) else ""
    except _TURBO_ERRORS as error:
        fault = _line(error)
    if fault:
        _judge(data, header, settings, fault)
    return pixels if keep_pixels and not fault and colours == "RGBX" else None


def _colours(header: _Header) -> str:
    return "CMYK" if _is_cmyk(header) else "GRAY"


def _is_cmyk(header: _Header) -> bool:
    return "cmyk" in header.odd


def _judge(data: bytes, header: _Header, settings: ImageSettings, fault: str) -> None:
    """Raise BadSampleError for a JPEG with a fault, unless that is harmless or accepted."""
    try:
        simplejpeg.decode_jpeg(data, _colours(header), strict=False, **_SMALLEST)
    except _TURBO_ERRORS as error:
        if not _is_harmless(str(error)):
            raise BadSampleError("undecodable", f"does not decode: {_line(error)}") from None
        # Of remarks on the header its binding makes errors whatever is asked of it.
        _load(data, settings.max_pixels)
    if not _is_harmless(fault) and settings.policies["corrupt"] != KEEP:
        raise BadSampleError("corrupt", f"decodes with errors: {fault}")


def _is_harmless(fault: str) -> bool:
    return any(word in fault for word in _HARMLESS)


def _has_hole(data: bytes) -> bool:
    """Whether zeros stand where pixels were: a decoder sees it only if it ends up out of step.

    In the usual code tables zeros would mean coefficients of -1 throughout. Tables that an encoder
    has made for the image may give zeros another meaning, so there nothing is said.
    """
    if _USUAL_TABLE not in data or data.find(_HOLE, data.find(_SCAN)) < 0:
        return False
    end = _end_of_picture(data)
    return data.find(_HOLE, data.rfind(_SCAN, 0, end), data.rfind(_END, 0, end)) >= 0


def _end_of_picture(data: bytes) -> int:
    """Where a JPEG's own data ends: cameras put films and further pictures behind it.

    Segments are stepped over, because thumbnails in them have ends of their own. Where there is
    doubt it is the end of the file, so that nothing escapes the limits.
    """
    position = 2
    for _ in range(_MAX_SEGMENTS):
        marker = _MARKER.search(data, position)
        if marker is None or marker[0] == _START:
            break
        if marker[0] == _END:
            return marker.end()
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return len(data)


def is_cut_off(data: bytes, found: str) -> bool:
    """Whether an image of this format has no end; cheap, and no where there is doubt."""
    if found == "webp":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if found == "png":
        return data.rfind(b"IEND") < 0
    return found == "jpg" and not _has_end(data)


def _has_end(data: bytes) -> bool:
    position = 2
    for _ in range(_MAX_SEGMENTS):
        marker = _MARKER.search(data, position)
        if marker is None:
            return False
        if marker[0] in (_START, _END):
            return True
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return True


def _other_header(data: bytes) -> _Header:
    def read(image: Image.Image) -> _Header:
        header = _upright_header(*image.size, _odd_modes(image), pil_orientation(image))
        return header._replace(has_alpha=image.has_transparency_data, by_pil=True)

    try:
        return with_image(data, read)
    except Image.DecompressionBombError as error:
        raise BadSampleError("too-large", _line(error)) from None
    except Exception as error:  # PIL's plugins raise almost anything for hostile bytes
        raise BadSampleError("undecodable", f"does not decode: {_line(error)}") from None


def _odd_modes(image: Image.Image) -> list[str]:
    if getattr(image, "is_animated", False):
        return ["animated"]
    kind = {"CMYK": "cmyk", "P": "palette", "PA": "palette", "F": "16-bit"}.get(image.mode)
    kind = "16-bit" if image.mode.startswith("I") else kind
    return [kind] if kind else []


def _load(data: bytes, max_pixels: int) -> Image.Image:
    with _as_bad_sample():
        return load_image(data, max_pixels)


def _rgb(image: Image.Image, settings: ImageSettings) -> Image.Image:
    with _as_bad_sample():
        return to_rgb(image, parse_colour(settings.background))


@contextlib.contextmanager
def _as_bad_sample() -> Iterator[None]:
    try:
        yield
    except BadImageError as error:
        raise BadSampleError(error.kind, str(error)) from None


def to_pixels(image: Image.Image) -> np.ndarray:
    """uint8 (H, W, 4) of an RGB image, the fourth channel to be ignored."""
    return np.ascontiguousarray(image.convert("RGBX"))


def _convert(
    data: bytes, found: str, image: Image.Image | None, settings: ImageSettings
) -> CheckedImage:
    """Upright RGB of 8 bits: JPEG stays JPEG at high quality, all else is PNG, without loss."""
    image = _rgb(image or _load(data, settings.max_pixels), settings)
    if found == "jpg":
        pixels = np.ascontiguousarray(image)
        encoded = simplejpeg.encode_jpeg(pixels, quality=98, colorsubsampling="444")
        return CheckedImage(encoded, "jpg", image.width, image.height)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return CheckedImage(stream.getvalue(), "png", image.width, image.height)


def _line(error: Exception) -> str:
    # PIL names the in-memory file by its address, which no two runs share.
    return first_line(error)[:120].split(" <_io")[0]
