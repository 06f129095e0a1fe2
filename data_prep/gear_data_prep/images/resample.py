"""Antialiased resizing in Pillow's fixed-point arithmetic: the same pixels on every machine.

A new pixel is a weighted sum of old ones, along rows first, with whole numbers for weights. So
whoever computes it, and in whatever order, gets the same pixels: `resample.c`, Pillow or numpy.
"""

import ctypes
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from gear_data_prep.images.native import load_native

_PRECISION = 22
_SPLIT = 11
_TAPS = 4
"""Weights that `resample.c` applies at once."""
_ROW_BYTES = 16
"""What its rows are a multiple of."""


class _Windows(NamedTuple):
    """Which old pixels the new ones are made of, along one direction."""

    first: np.ndarray
    """int32 (new,): the window's first pixel."""
    weights: np.ndarray
    """int32 (new, taps): 2^22 stands for 1; taps are a multiple of four."""
    halves: np.ndarray
    """int16 (new, taps / 4, 2, 4): the same as `resample.c` takes them."""


def resample(pixels: np.ndarray, width: int, height: int, kind: str) -> np.ndarray:
    """A smaller image.

    Args:
        pixels: uint8 (H, W, 4), contiguous: red, green, blue, anything.
        width: new width, at most the old one.
        height: new height, at most the old one.
        kind: bicubic: exactly Pillow's; area: means over the area that a new pixel covers.

    Returns:
        uint8 (height, width, 4).
    """
    assert pixels.flags.c_contiguous
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 4
    assert width <= pixels.shape[1]
    assert height <= pixels.shape[0]
    across = _make_windows(pixels.shape[1], width, kind)
    down = _make_windows(pixels.shape[0], height, kind)
    inside = min(across.first.min(), down.first.min()) >= 0
    library = _library()
    if library is not None and inside:
        return _by_library(library, pixels, across, down)
    if kind == "bicubic":
        return _by_pillow(pixels, width, height)
    return _by_numpy(pixels, across, down)


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = load_native("resample")
    return library if library is not None and library.gear_resample_supported() else None


def _by_library(
    library: ctypes.CDLL, pixels: np.ndarray, across: _Windows, down: _Windows
) -> np.ndarray:
    old_height, old_width = pixels.shape[:2]
    width, height = len(across.first), len(down.first)
    stride = -(-width * 4 // _ROW_BYTES) * _ROW_BYTES
    between = np.empty((old_height, stride), np.uint8)
    size = ctypes.c_int64
    library.gear_resample_rows(
        _at(pixels), size(old_height), size(old_width), _at(between), size(width), size(stride),
        _at(across.first), _at(across.halves), size(across.halves.shape[1]),
    )  # fmt: skip
    small = np.empty((height, width, 4), np.uint8)
    library.gear_resample_columns(
        _at(between), size(stride), _at(small), size(height), size(width * 4),
        _at(down.first), _at(down.halves), size(down.halves.shape[1]),
    )  # fmt: skip
    return small


def _at(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _by_pillow(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    size = (pixels.shape[1], pixels.shape[0])
    image = Image.frombuffer("RGBX", size, pixels, "raw", "RGBX", 0, 1).convert("RGB")
    small = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(small.convert("RGBX"))


def _by_numpy(pixels: np.ndarray, across: _Windows, down: _Windows) -> np.ndarray:
    between = _sum_windows(pixels.transpose(1, 0, 2), across).transpose(1, 0, 2)
    return np.ascontiguousarray(_sum_windows(between, down))


def _sum_windows(pixels: np.ndarray, windows: _Windows) -> np.ndarray:
    """uint8 (old, M, 4) to uint8 (new, M, 4)."""
    half = 1 << (_PRECISION - 1)
    total = np.full((len(windows.first), *pixels.shape[1:]), half, np.int32)
    for tap in range(windows.weights.shape[1]):
        # Taps beyond the edge have the weight 0.
        rows = np.clip(windows.first + tap, 0, len(pixels) - 1)
        total += pixels[rows] * windows.weights[:, tap, None, None]
    return np.clip(total >> _PRECISION, 0, 255).astype(np.uint8)


@functools.lru_cache(64)
def _make_windows(old: int, new: int, kind: str) -> _Windows:
    """The windows along one direction; `first` is negative where whole groups do not fit in."""
    first, weights = _KINDS[kind](old, new)
    spare = -weights.shape[1] % _TAPS
    weights = np.pad(weights, ((0, 0), (0, spare)))
    # A window that would end outside begins earlier instead, with weights of zero.
    shift = np.maximum(0, first + weights.shape[1] - old)
    taps = np.arange(weights.shape[1]) - shift[:, None]
    moved = np.take_along_axis(weights, np.maximum(taps, 0), 1) * (taps >= 0)
    high, low = moved >> _SPLIT, moved & ((1 << _SPLIT) - 1)
    grouped = [half.reshape(new, -1, 1, _TAPS) for half in (high, low)]
    halves = np.ascontiguousarray(np.concatenate(grouped, 2), np.int16)
    return _Windows((first - shift).astype(np.int32), moved.astype(np.int32), halves)


def _bicubic_windows(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Pillow's, operation by operation: another order of the sums could round another way."""
    scale = old / new
    support = 2.0 * scale
    centers = (np.arange(new) + 0.5) * scale
    first = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centers + support + 0.5).astype(np.int64), old)
    taps = np.arange(int((last - first).max()))
    values = _cubic((taps + first[:, None] - centers[:, None] + 0.5) * (1.0 / scale))
    values *= taps < (last - first)[:, None]
    total = np.zeros(new)
    for column in values.T:
        total += column
    scaled = values / total[:, None] * (1 << _PRECISION)
    return first, (scaled + np.where(scaled < 0, -0.5, 0.5)).astype(np.int64)


def _cubic(x: np.ndarray) -> np.ndarray:
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _area_windows(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Shares of new pixels' areas in whole numbers: an old pixel is `new` wide, a new one `old`."""
    begin = np.arange(new, dtype=np.int64) * old
    end = begin + old
    first = begin // new
    taps = np.arange(int((-(-end // new) - first).max()))
    left = (first[:, None] + taps) * new
    overlap = np.minimum(left + new, end[:, None]) - np.maximum(left, begin[:, None])
    return first, ((np.maximum(overlap, 0) << (_PRECISION + 1)) + old) // (2 * old)


_KINDS: dict[str, Callable[[int, int], tuple[np.ndarray, np.ndarray]]] = {
    "bicubic": _bicubic_windows,
    "area": _area_windows,
}
