"""Crops: PIL's pixels by a faster way, placement, image kinds, what does not decode."""

import io

import numpy as np
import pytest
from PIL import Image

from gear_dist.data.crops import CropSettings, Placement, take_crop
from gear_dist.data.images import BadImageError, crop, decode_image, resize_short_side
from loader_cases import encode
from refusals import refused


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Random pixels with edges and gradients, as photographs have."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8))
    wide = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noisy = wide + random.integers(-20, 20, (height, width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def pil_crop(data: bytes, size: int, place: Placement) -> np.ndarray:
    image = resize_short_side(decode_image(data, 10**8), size)
    return np.asarray(crop(image, size, left=place.left, top=place.top, flip=place.flip)).astype(
        int
    )


def test_resize_is_pils_bicubic() -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (90, 131, 3), np.uint8)
    image = decode_image(encode(pixels), 10**6)
    done = np.asarray(resize_short_side(image, 64))
    expected = Image.fromarray(pixels).resize((93, 64), Image.Resampling.BICUBIC)
    assert np.array_equal(done, np.asarray(expected))
    assert resize_short_side(Image.new("RGB", (10, 20)), 64).size == (64, 128)
    with_crop = np.asarray(crop(resize_short_side(image, 64), 64, left=0.999, top=0.999))
    assert np.array_equal(with_crop, done[:, -64:])


def test_image_modes() -> None:
    def decoded(image: Image.Image, format_: str = "PNG") -> list[int]:
        stream = io.BytesIO()
        image.save(stream, format_)
        rgb = decode_image(stream.getvalue(), 10**6)
        assert rgb.mode == "RGB"
        return list(rgb.getpixel((0, 0)))

    grey = np.full((4, 4), 200 * 256 + 7, np.uint16)
    assert decoded(Image.fromarray(grey)) == [200, 200, 200]
    assert decoded(Image.new("L", (4, 4), 90)) == [90, 90, 90]
    assert decoded(Image.new("RGBA", (4, 4), (1, 2, 3, 255))) == [1, 2, 3]
    assert decoded(Image.new("RGB", (4, 4), (250, 0, 0)).quantize(4)) == [250, 0, 0]
    assert abs(decoded(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG")[0] - 255) <= 2
    for data in (b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", encode(np.zeros((4, 4), np.uint8))[:40]):
        with pytest.raises(BadImageError):
            decode_image(data, 10**6)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("height", "width"), [(375, 500), (500, 375), (64, 64), (40, 90), (900, 130), (1020, 1360)]
)
def test_pixels_are_pils_to_one_grey_level(kind: str, height: int, width: int) -> None:
    options = {"quality": 90} if kind == "JPEG" else {"compress_level": 1}
    data = encode(smooth(height, width), kind, **options)
    for place in (Placement(), Placement(0.999, 0.2, True), Placement(0.0, 0.999)):
        found = take_crop(data, CropSettings(64), place).astype(int)
        assert np.abs(found - pil_crop(data, 64, place)).max() <= 1


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpegs_that_are_not_resized_are_pils_exactly(subsampling: int) -> None:
    data = encode(smooth(64, 80), "JPEG", subsampling=subsampling, progressive=subsampling == 1)
    found = take_crop(data, CropSettings(64), Placement(0.4, 0.0, True))
    assert np.array_equal(found, pil_crop(data, 64, Placement(0.4, 0.0, True)))


def test_fast_decoding_changes_large_jpegs_alone() -> None:
    large, small = (encode(smooth(side, side), "JPEG", quality=95) for side in (256, 120))
    for data, same in ((large, False), (small, True)):
        exact = take_crop(data, CropSettings(64), Placement())
        fast = take_crop(data, CropSettings(64, decoding="fast"), Placement())
        assert np.array_equal(exact, fast) == same
        error = np.abs(exact.astype(int) - fast).mean()
        assert error < 8


def test_all_kinds_of_images() -> None:
    pixels = smooth(64, 64)
    image = Image.fromarray(pixels)
    for kind, mode in (("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "P"), ("PNG", "I;16")):
        stream = io.BytesIO()
        wide = np.asarray(image.convert("L")).astype(np.uint16) * 256
        (Image.fromarray(wide) if mode == "I;16" else image.convert(mode)).save(stream, kind)
        found = take_crop(stream.getvalue(), CropSettings(64), Placement())
        assert np.array_equal(found, pil_crop(stream.getvalue(), 64, Placement())), (kind, mode)


def test_damaged_images_are_judged_as_pil_judges_them() -> None:
    data = encode(smooth(64, 80), "JPEG")
    trailing = data + b"rest of another file"
    assert take_crop(trailing, CropSettings(64), Placement()).shape == (64, 64, 3)
    for bad in (data[: len(data) // 2], b"", b"\xff\xd8\xff", data[:200]):
        with pytest.raises(BadImageError):
            take_crop(bad, CropSettings(64), Placement())
    with refused(BadImageError, "80 x 64", "max_pixels", 1000):
        take_crop(data, CropSettings(64, max_pixels=1000), Placement())
