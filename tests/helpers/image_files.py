"""Encoded images, and files of other people's making, for tests of sharding."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def encode(seed: int = 0, kind: str = "JPEG", size: tuple[int, int] = (64, 48), **options) -> bytes:
    """A soft random picture; `mode` among the options converts it first."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.convert(options.pop("mode", "RGB")).save(stream, kind, **options)
    return stream.getvalue()


def tar_bytes(members: dict[str, bytes], **options) -> bytes:
    """A tar by Python's own writer."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **options) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of every file below a folder by relative path."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }
