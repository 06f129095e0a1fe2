"""Image bytes to bytes that may go into a shard: checked, and converted where a policy says so."""

import io
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from gear_data_prep.policies import CONVERT, KEEP, parse_policies
from gear_data_prep.samples import BadSampleError
from gear_dist.data.images import BadImageError, check_size, decode_image

CHECKS = ("header", "decode", "strict")
_MAX_SCANS = 100
_MAX_SCAN_PIXELS = 2_000_000_000
# libjpeg-turbo's remarks on files that are whole: strict mode raises on them as well.
_HARMLESS = ("JFIF", "Adobe")
# TurboJPEG names an error; its binding trips over values that it does not know.
_TURBO_ERRORS = (ValueError, KeyError)
_HOLE = bytes(512)
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
_SAME = {"jpeg": "jpg", "tiff": "tif"}
_FOREIGN = ("gif", "tif")


class ImageSettings(NamedTuple):
    """What an image must be like; part of the plan."""

    check: str = "strict"
    """header: its header is right; decode: PIL decodes it; strict: libjpeg-turbo decodes it
    without a complaint (JPEG; other formats carry checksums or fail in PIL)."""
    max_pixels: int = 64_000_000
    """More is too large, found by the header, before anything is decoded."""
    max_bytes: int = 64 << 20
    """Longer files are too large."""
    policies: dict[str, str] = parse_policies([])
    """Action by kind."""


class CheckedImage(NamedTuple):
    """An image that may go into a shard."""

    data: bytes
    suffix: str
    width: int
    height: int


class _Header(NamedTuple):
    width: int
    height: int
    oddity: str
    """The policy's kind where the mode is odd, else empty."""
    by_pil: bool = False
    """Whether libjpeg-turbo has no say, because it is another format or a rare JPEG."""


def check_image(data: bytes, suffix: str, settings: ImageSettings) -> CheckedImage:
    """The image as it goes into the shard: its own bytes, unless a policy converts it.

    Args:
        data: the encoded image.
        suffix: the format that its source claims; empty: none.
        settings: limits, check and policies.

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
    header = _jpeg_header(data) if found == "jpg" else _other_header(data)
    _check_size(header.width, header.height, settings.max_pixels)
    keep_name = wrong and settings.policies["mislabelled"] == KEEP
    kind = "format" if found in _FOREIGN else header.oddity
    if header.oddity and settings.policies[header.oddity] not in (CONVERT, KEEP):
        raise BadSampleError(header.oddity, f"its mode: {header.oddity}")
    if kind and settings.policies[kind] == CONVERT:
        return _convert(data, found, settings)
    if kind == "format":
        raise BadSampleError(kind, f"{found} is not read by the loader")
    if found == "jpg":
        _check_jpeg(data, header, settings)
    elif settings.check != "header":
        _decode(data, settings.max_pixels)
    return CheckedImage(data, claimed if keep_name else found, header.width, header.height)


def _sniff(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    found = next((suffix for magic, suffix in _MAGIC if data.startswith(magic)), None)
    if found is None:
        raise BadSampleError("undecodable", "does not decode: no image format that is known")
    return found


def _check_size(width: int, height: int, max_pixels: int) -> None:
    try:
        check_size(width, height, max_pixels)
    except BadImageError as error:
        raise BadSampleError(error.kind, str(error)) from None


def _jpeg_header(data: bytes) -> _Header:
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except _TURBO_ERRORS:
        return _other_header(data)  # PIL reads rare subsamplings that TurboJPEG does not name
    # Entropy-coded data cannot hold this marker: every scan costs a pass over all pixels.
    scans = data.count(b"\xff\xda")
    if scans > _MAX_SCANS or scans * width * height > _MAX_SCAN_PIXELS:
        raise BadSampleError("too-large", f"{width} x {height} pixels in {scans} scans")
    return _Header(width, height, "cmyk" if colours in ("CMYK", "YCCK") else "")


def _check_jpeg(data: bytes, header: _Header, settings: ImageSettings) -> None:
    if settings.check == "decode" or (settings.check == "strict" and header.by_pil):
        _decode(data, settings.max_pixels)
        return
    if settings.check == "header":
        return
    colours = "CMYK" if header.oddity == "cmyk" else "GRAY"
    # Scaled by 1/8 it still reads every entropy-coded bit, but computes 1/64 of the pixels.
    small = {"min_height": 1, "min_width": 1, "min_factor": 1}
    try:
        simplejpeg.decode_jpeg(data, colours, fastdct=True, fastupsample=True, strict=True, **small)
        strict = "" if not _has_hole(data) else "a run of zeros among the pixels"
    except _TURBO_ERRORS as error:
        strict = _line(error)
    if not strict:
        return
    try:
        simplejpeg.decode_jpeg(data, colours, strict=False, **small)
    except _TURBO_ERRORS as error:
        raise BadSampleError("undecodable", f"does not decode: {_line(error)}") from None
    harmless = any(word in strict for word in _HARMLESS)
    if not harmless and settings.policies["corrupt"] != KEEP:
        raise BadSampleError("corrupt", f"decodes with errors: {strict}")


def _has_hole(data: bytes) -> bool:
    """Whether zeros stand where pixels were: a decoder sees it only if it ends up out of step.

    In the usual code tables zeros would mean coefficients of -1 throughout. Tables that an encoder
    has made for the image may give zeros another meaning, so there nothing is said.
    """
    pixels = data.rfind(b"\xff\xda")
    return _USUAL_TABLE in data and data.find(_HOLE, pixels, data.rfind(b"\xff\xd9")) >= 0


def _other_header(data: bytes) -> _Header:
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            mode, frames = image.mode, getattr(image, "is_animated", False)
    except Image.DecompressionBombError as error:
        raise BadSampleError("too-large", _line(error)) from None
    except Exception as error:  # PIL's plugins raise almost anything for hostile bytes
        raise BadSampleError("undecodable", f"does not decode: {_line(error)}") from None
    if frames:
        return _Header(width, height, "animated", True)
    oddity = {"CMYK": "cmyk", "P": "palette", "PA": "palette", "F": "16-bit"}.get(mode, "")
    return _Header(width, height, "16-bit" if mode.startswith("I") else oddity, True)


def _decode(data: bytes, max_pixels: int) -> Image.Image:
    try:
        return decode_image(data, max_pixels)
    except BadImageError as error:
        raise BadSampleError(error.kind, str(error)) from None


def _convert(data: bytes, found: str, settings: ImageSettings) -> CheckedImage:
    """RGB of 8 bits: JPEG stays JPEG at high quality, all else becomes PNG, without loss."""
    image = _decode(data, settings.max_pixels)
    if found == "jpg":
        pixels = np.ascontiguousarray(image)
        encoded = simplejpeg.encode_jpeg(pixels, quality=98, colorsubsampling="444")
        return CheckedImage(encoded, "jpg", image.width, image.height)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return CheckedImage(stream.getvalue(), "png", image.width, image.height)


def _line(error: Exception) -> str:
    text = (str(error).splitlines() or [type(error).__name__])[0][:120]
    # PIL names the in-memory file by its address, which no two runs share.
    return text.split(" <_io")[0]
