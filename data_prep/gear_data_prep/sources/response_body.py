"""What a server has sent in place of the image that it was asked for."""

import zlib

from gear_data_prep.images.checks import is_cut_off, read_header, sniff
from gear_data_prep.samples import BadSampleError
from gear_data_prep.sources.row_connection import FetchError, RetryError

_INFLATED = {"gzip", "x-gzip", "deflate"}
_NAMED = {"br", "zstd", "compress"}
"""Others are not repeated: reasons are counted, and a server may make up any."""
_ANY_HEADER = 32 + zlib.MAX_WBITS
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<body")
_DRAWINGS = (b"<svg", b"<?xml")


def image_of(data: bytes, encoding: str, max_bytes: int) -> bytes:
    """The image in a body.

    It is taken as it is where it is an image already: servers name encodings that they do not use.

    Args:
        data: the body.
        encoding: its Content-Encoding; none was asked for.
        max_bytes: more bytes are not decoded.

    Raises:
        FetchError: it is no image that is read, or too long.
        RetryError: it breaks off.
    """
    encoding = encoding.strip().lower()
    if data and encoding not in ("", "identity") and not sniff(data):
        data = _decode(data, encoding, max_bytes)
    found = sniff(data)
    if not found:
        raise FetchError(_describe(data))
    if is_cut_off(data, found):
        raise RetryError("its body is an image that is cut off")
    try:
        read_header(data, found)
    except BadSampleError as error:
        # What is too large is for the options of the sharding to decide.
        if error.kind == "undecodable":
            raise FetchError("its body is an image with a damaged header") from None
    return data


def _decode(data: bytes, encoding: str, max_bytes: int) -> bytes:
    if encoding not in _INFLATED:
        name = encoding if encoding in _NAMED else "of another name"
        raise FetchError(f"it is sent in a Content-Encoding ({name}) that was not asked for")
    inflater = zlib.decompressobj(_ANY_HEADER)
    try:
        decoded = inflater.decompress(data, max_bytes + 1)
    except zlib.error:
        raise FetchError("its Content-Encoding (gzip) is damaged") from None
    if len(decoded) > max_bytes:
        raise FetchError(f"longer than {max_bytes} bytes")
    if not inflater.eof:
        raise RetryError("its Content-Encoding (gzip) is cut off")
    return decoded


def _describe(data: bytes) -> str:
    """What a body is that is no image, in words that many rows share."""
    start = data[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not data:
        return "its body is empty"
    if start.startswith(_PAGES):
        return "its body is a page of HTML, no image"
    if start.startswith(_DRAWINGS):
        return "its body is SVG or XML, which is not read"
    if data[4:8] == b"ftyp":
        return "its body is AVIF, HEIC or a video, which are not read"
    return "its body is no image"
