"""Resizing gives Pillow's pixels, whoever computes them."""

import numpy as np
import pytest
from PIL import Image

from gear_data_prep.images import resample as module
from gear_data_prep.images.resample import resample

SIZES = [
    ((500, 375), (341, 256)),
    ((257, 300), (256, 298)),
    ((64, 48), (5, 7)),
    ((64, 48), (64, 13)),
    ((33, 29), (8, 8)),
    ((900, 17), (256, 16)),
    ((7, 7), (3, 3)),
    ((3, 9), (1, 9)),
]


def pictures(size: tuple[int, int]) -> list[np.ndarray]:
    """Noise, and black and white, where bicubic weights overshoot."""
    shape = (size[1], size[0], 4)
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, shape, np.uint8), rng.integers(0, 2, shape, np.uint8) * 255]


@pytest.fixture(params=["compiled", "otherwise"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "otherwise":
        monkeypatch.setattr(module, "_library", lambda: None)
    elif module._library() is None:
        pytest.skip("no C compiler, or a processor without AVX2")


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_bicubic_is_pillows(old: tuple[int, int], new: tuple[int, int]) -> None:
    for pixels in pictures(old):
        image = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
        wanted = np.asarray(image.resize(new, Image.Resampling.BICUBIC))
        assert np.array_equal(resample(pixels, *new, "bicubic")[..., :3], wanted)


def covering(old: int, new: int) -> np.ndarray:
    """(new, old): which share of a new pixel each old one covers."""
    scale = old / new
    left, place = np.arange(new)[:, None] * scale, np.arange(old)
    overlap = np.minimum(left + scale, place + 1) - np.maximum(left, place)
    return np.maximum(overlap, 0) / scale


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_area_is_the_mean_of_what_is_covered(old: tuple[int, int], new: tuple[int, int]) -> None:
    for pixels in pictures(old):
        across, down = (covering(a, b) for a, b in zip(old, new, strict=True))
        wanted = np.einsum("yr,rcx,dc->ydx", down, pixels[..., :3], across, optimize=True)
        found = resample(pixels, *new, "area")[..., :3]
        assert np.abs(found - wanted).max() <= 1, "each of the two directions rounds"


@pytest.mark.parametrize("kind", ["bicubic", "area"])
def test_all_ways_give_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for old, new in SIZES:
        for pixels in pictures(old):
            first = resample(pixels, *new, kind)
            with monkeypatch.context() as patch:
                patch.setattr(module, "_library", lambda: None)
                second = resample(pixels, *new, kind)
            windows = [module._make_windows(a, b, kind) for a, b in zip(old, new, strict=True)]
            third = module._by_numpy(pixels, *windows)
            assert np.array_equal(first[..., :3], second[..., :3])
            assert np.array_equal(first[..., :3], third[..., :3])
