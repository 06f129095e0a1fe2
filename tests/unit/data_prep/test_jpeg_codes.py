"""JPEG codes read one by one: whole pictures of any encoder pass, and what a decoder misses not."""

import io
import random
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
import skimage
from PIL import Image

from gear_data_prep.images import jpeg_codes
from gear_data_prep.images.checks import ImageSettings, check_image
from gear_data_prep.images.jpeg_codes import COMPLAINTS, CodeFault, can_read_codes, read_codes
from gear_data_prep.samples import BadSampleError
from gear_dist.errors import ConfigError
from refusals import refused

needs_compiler = pytest.mark.skipif(not can_read_codes(), reason="no C compiler on this machine")


def by_pil(pixels: np.ndarray, mode: str = "RGB", **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


def extreme_pictures() -> Iterator[np.ndarray]:
    """Noise, stripes, flat colours, and the largest coefficients that a block can have."""
    rng = np.random.default_rng(0)
    x = np.arange(8)
    waves = np.array([np.cos((2 * x + 1) * k * np.pi / 16) for k in range(8)])
    bases = np.block([[np.outer(a, b) for a in waves] for b in waves]) > 0
    grey = (bases * 255).astype(np.uint8)
    yield np.repeat(grey[..., None], 3, 2)
    yield np.stack([grey, 255 - grey, grey.T], 2)
    yield rng.integers(0, 256, (97, 131, 3), np.uint8)
    yield (rng.integers(0, 2, (64, 50, 3)) * 255).astype(np.uint8)
    for colour in ((0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 0, 255)):
        yield np.full((40, 30, 3), colour, np.uint8)
    stripes = np.full((33, 90, 3), 255, np.uint8)
    stripes[:, ::5] = 0
    yield stripes


def encodings(pixels: np.ndarray, quality: int) -> Iterator[bytes]:
    """What encoders make of a picture: tables, subsamplings, restarts, transforms."""
    for subsampling in (0, 1, 2):
        yield by_pil(pixels, quality=quality, subsampling=subsampling, optimize=quality % 2 == 0)
    yield by_pil(pixels, quality=quality, restart_marker_blocks=3)
    yield by_pil(pixels, quality=quality, restart_marker_rows=1)
    yield by_pil(pixels, "L", quality=quality)
    yield by_pil(pixels, "CMYK", quality=quality)
    yield by_pil(pixels, qtables=[[1] * 64, [255] * 64])
    yield by_pil(pixels, quality=quality, keep_rgb=True)
    for name in ("444", "422", "420", "440", "411"):
        for fast in (False, True):
            yield simplejpeg.encode_jpeg(pixels, quality, colorsubsampling=name, fastdct=fast)
    for factor in (cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440):
        options = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor, cv2.IMWRITE_JPEG_RST_INTERVAL, 7]
        yield cv2.imencode(".jpg", pixels, [*options, cv2.IMWRITE_JPEG_QUALITY, quality])[
            1
        ].tobytes()


@needs_compiler
def test_whole_pictures_are_clean() -> None:
    for pixels in extreme_pictures():
        for quality in (1, 30, 75, 96, 100):
            for data in encodings(pixels, quality):
                assert read_codes(data) == CodeFault.CLEAN
    progressive = by_pil(pixels, progressive=True)
    assert read_codes(progressive) == CodeFault.UNSURE, "for a decoder to say"


@needs_compiler
def test_what_is_clean_decodes_without_a_complaint() -> None:
    """Whatever is changed: who skips the decoder must not miss its errors."""
    rng = random.Random(0)
    pixels = np.random.default_rng(1).integers(0, 256, (60, 80, 3), np.uint8)
    originals = list(encodings(pixels, 80))
    by_codes, by_decoder = ImageSettings(read_codes=True), ImageSettings()
    num_clean = 0
    for number in range(3000):
        data = bytearray(originals[number % len(originals)])
        end = data.find(b"\xff\xda") + 20 if rng.random() < 0.7 else len(data)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(end)] = rng.randrange(256)
        if not is_bad(bytes(data), by_codes):
            assert not is_bad(bytes(data), by_decoder)
            num_clean += 1
    assert num_clean > 500


def is_bad(data: bytes, settings: ImageSettings) -> bool:
    try:
        check_image(data, "jpg", settings)
    except BadSampleError:
        return True
    return False


@needs_compiler
def test_damage_that_no_decoder_tells() -> None:
    """One code becomes another; the decoder is content, because as many blocks come out."""
    with Image.open(Path(skimage.__file__).parent / "data/chelsea.png") as opened:
        data = by_pil(np.asarray(opened), quality=90)
    rng = random.Random(0)
    num_missed = 0
    for _ in range(60):
        start = rng.randrange(1000, len(data) - 100)
        garbled = data[:start] + rng.randbytes(16) + data[start + 16 :]
        found = read_codes(garbled)
        try:
            simplejpeg.decode_jpeg(garbled, strict=True)
        except (ValueError, KeyError):
            continue
        if found > CodeFault.UNSURE:
            num_missed += 1
            with refused(BadSampleError, COMPLAINTS[found]) as caught:
                check_image(garbled, "jpg", ImageSettings(read_codes=True))
            assert caught.value.kind == "corrupt"
    assert num_missed >= 5


@needs_compiler
def test_bytes_that_no_block_needs() -> None:
    data = by_pil(np.full((64, 64, 3), 99, np.uint8))
    assert read_codes(data[:-2] + b"\x12\x34\x56" + data[-2:]) == CodeFault.LEFT_OVER
    for filling in (b"\0\0\0", b"\xff\xff"):
        assert read_codes(data[:-2] + filling + data[-2:]) <= CodeFault.UNSURE
    assert read_codes(b"") == read_codes(b"\xff\xd8") == read_codes(data[:-2]) == CodeFault.UNSURE


def test_a_plan_with_codes_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg_codes, "_library", lambda: None)
    assert not can_read_codes()
    with refused(ConfigError, "gear-dist", "C compiler"):
        check_image(by_pil(np.zeros((9, 9, 3), np.uint8)), "", ImageSettings(read_codes=True))
