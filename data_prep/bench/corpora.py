"""Pictures to measure with: JPEGs as heavy as photographs of their size."""

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

NUM_CLASSES = 20


def encode_picture(seed: int, size: tuple[int, int], quality: int = 94) -> bytes:
    """A JPEG with soft shapes and grain; 500 x 375 at quality 94 has about 96 kB."""
    rng = np.random.default_rng(seed)
    width, height = size
    coarse = rng.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), np.uint8)
    soft = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    grain = rng.normal(0, 9, (height, width, 1)) + rng.normal(0, 3, (height, width, 3))
    pixels = np.clip(np.asarray(soft) + grain, 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    picture = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.55))
    picture.save(stream, "JPEG", quality=quality, subsampling=2)
    return stream.getvalue()


def make_tree(
    root: Path, num_images: int, size: tuple[int, int], *, num_distinct: int = 400
) -> Path:
    """An ImageFolder tree; `num_distinct` pictures repeat, each a file of its own."""
    if root.exists():
        return root
    distinct = [encode_picture(seed, size) for seed in range(min(num_images, num_distinct))]
    for number in range(num_images):
        folder = root / f"class{number % NUM_CLASSES:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:06d}.jpg").write_bytes(distinct[number % len(distinct)])
    os.sync()
    return root
