"""A procedural corpus that stands in for photographs: an ImageFolder tree of 16 classes.

A class is a shape with a texture. Colour, position, size, rotation and background are drawn
independently of it, and both tones of an object are as likely everywhere in it, so that neither a
mean colour nor any single pixel tells a class. Objects are large: small ones do not survive a
narrow tokenizer. Every image is a function of (seed, split, index) alone, so any number of
processes writes the same bytes.
"""

import colorsys
import hashlib
import io
import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from gear_dist.errors import ConfigError, DataError, StorageError
from gear_dist.storage.atomic import write_file

SHAPES = ("circle", "square", "triangle", "cross")
TEXTURES = ("solid", "striped", "checkered", "ringed")
HUES = ("red", "orange", "green", "teal", "blue", "violet", "purple", "pink")
CLASSES = tuple(sorted(f"{shape}_{texture}" for shape in SHAPES for texture in TEXTURES))
JPEG_QUALITY = 92
MARKER = "corpus.json"
STARTED = "corpus.started.json"

_VERSION = 1
_SUPERSAMPLING = 3
_RADIUS = (0.27, 0.35)
"""Range of the object's radius, as a share of the image's side."""
_SHIFT = 0.08
"""Largest shift of the object's centre along an axis, as a share of the image's side."""
_ROTATION = np.pi / 9
"""Largest rotation to either side, radians."""
_STRIPE = 0.5
_CHECK = 0.62
"""Widths of a stripe and of a check's cell, in radii."""
_RING = 0.6
"""Size of the inner figure of a ringed object."""
_CHUNK = 250


class SampleCorpusSettings(NamedTuple):
    """What a corpus is a function of."""

    size: int = 32
    """Side of the images, pixels."""
    train: int = 12_000
    """Training images."""
    validation: int = 3_000
    """Validation images."""
    seed: int = 0

    def digest(self) -> str:
        """Hash of the settings and of this generator's version."""
        text = json.dumps({"version": _VERSION, **self._asdict()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class DrawnSample(NamedTuple):
    """One image with what is known about it."""

    pixels: np.ndarray
    """(size, size, 3) uint8."""
    caption: str
    attributes: dict[str, int]


def make_sample_corpus(
    folder: Path, settings: SampleCorpusSettings, *, workers: int = 2, overwrite: bool = False
) -> bool:
    """Write the corpus, or recognise a finished one; whether it was written.

    The layout is FOLDER/{train,val}/CLASS/INDEX.{jpg,txt,json}; the marker that makes it
    finished comes last.

    Raises:
        ConfigError: an impossible size or count.
        DataError: the folder holds something else (unless `overwrite`).
        StorageError: the disk refuses a write.
    """
    _check(settings, workers)
    if _recognise(folder, settings, overwrite):
        return False
    note = json.dumps({"digest": settings.digest(), "settings": settings._asdict()}).encode()
    write_file(folder / STARTED, note)
    try:
        _write_images(folder, settings, workers)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror or error}") from None
    write_file(folder / MARKER, note)
    (folder / STARTED).unlink(missing_ok=True)
    return True


def draw_sample(settings: SampleCorpusSettings, split: str, index: int) -> DrawnSample:
    """Image `index` of a split; its class is CLASSES[index % 16]."""
    shape, texture = CLASSES[index % len(CLASSES)].split("_")
    random = np.random.Generator(np.random.Philox(key=_key(settings.seed, split, index)))
    hue, background_hue = random.random(2)
    shift = random.uniform(-_SHIFT, _SHIFT, 2)
    radius = random.uniform(*_RADIUS)
    angle, phase_u, phase_v = random.uniform(-1, 1, 3)
    first_is_light = bool(random.integers(2))

    u, v = _object_frame(settings.size, shift, radius, angle * _ROTATION)
    inside = _inside(shape, u, v)
    second = _texture(texture, shape, u + phase_u, v + phase_v, u, v)
    cover = _downsample(inside, settings.size)[..., None]
    share = _downsample(inside & (second == first_is_light), settings.size)[..., None]

    light = _rgb(hue, random.uniform(0.5, 0.9), random.uniform(0.85, 1.0))
    dark = _rgb(hue, random.uniform(0.5, 0.9), random.uniform(0.08, 0.22))
    background = _background(settings.size, random, background_hue)
    mixed = background * (1 - cover) + light * (cover - share) + dark * share
    pixels = np.rint(mixed * 255).astype(np.uint8)

    attributes = {
        "shape": SHAPES.index(shape),
        "texture": TEXTURES.index(texture),
        "hue": int(hue * len(HUES)),
        "background": int(background_hue * len(HUES)),
        "position": 3 * _third(shift[1], -_SHIFT, _SHIFT) + _third(shift[0], -_SHIFT, _SHIFT),
        "size": _third(radius, *_RADIUS),
        "tone": int(first_is_light),
    }
    return DrawnSample(pixels, _caption(attributes), attributes)


def encode_jpeg(pixels: np.ndarray) -> bytes:
    """JPEG bytes at quality 92 without chroma subsampling."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def _check(settings: SampleCorpusSettings, workers: int) -> None:
    for name, value, low in (
        ("size", settings.size, 16),
        ("train", settings.train, len(CLASSES)),
        ("validation", settings.validation, len(CLASSES)),
        ("seed", settings.seed, 0),
        ("workers", workers, 1),
    ):
        if value < low:
            raise ConfigError(f"--{name} {value} is too small: use at least {low}")


def _recognise(folder: Path, settings: SampleCorpusSettings, overwrite: bool) -> bool:
    """Whether the finished corpus is there; clears or refuses what else the folder holds."""
    digest = _recorded_digest(folder / MARKER)
    if digest == settings.digest() and not overwrite:
        return True
    ours = digest is not None or _recorded_digest(folder / STARTED) is not None
    same = _recorded_digest(folder / STARTED) == settings.digest() and digest is None
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file: name a folder")
    if folder.exists() and not same:
        if any(folder.iterdir()) and not (ours and overwrite):
            what = "a sample corpus with other settings" if ours else "other files"
            fix = "use another folder" + (" or --overwrite" if ours else "")
            raise DataError(f"{folder}: holds {what}: {fix}")
        (folder / MARKER).unlink(missing_ok=True)
        for split in ("train", "val"):
            shutil.rmtree(folder / split, ignore_errors=True)
    return False


def _recorded_digest(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_bytes())["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_images(folder: Path, settings: SampleCorpusSettings, workers: int) -> None:
    counts = {"train": settings.train, "val": settings.validation}
    for split, name in ((s, c) for s in counts for c in CLASSES):
        (folder / split / name).mkdir(parents=True, exist_ok=True)
    chunks = [
        (folder, settings, split, start, min(start + _CHUNK, count))
        for split, count in counts.items()
        for start in range(0, count, _CHUNK)
    ]
    if workers == 1:
        for chunk in chunks:
            _write_chunk(chunk)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for _ in pool.map(_write_chunk, chunks):
            pass


def _write_chunk(chunk: tuple[Path, SampleCorpusSettings, str, int, int]) -> None:
    folder, settings, split, start, stop = chunk
    for index in range(start, stop):
        sample = draw_sample(settings, split, index)
        stem = f"{folder}/{split}/{CLASSES[index % len(CLASSES)]}/{index:06d}"
        for suffix, data in (
            ("jpg", encode_jpeg(sample.pixels)),
            ("txt", sample.caption.encode()),
            ("json", json.dumps(sample.attributes).encode()),
        ):
            with open(f"{stem}.{suffix}", "wb") as file:
                file.write(data)


def _key(seed: int, split: str, index: int) -> int:
    text = f"{seed}/{split}/{index}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the supersampled pixels, as shares of the side from the image's centre."""
    steps = size * _SUPERSAMPLING
    line = ((np.arange(steps) + 0.5) / steps - 0.5).astype(np.float32)
    x, y = np.meshgrid(line, line)
    return x, y


def _object_frame(
    size: int, shift: np.ndarray, radius: float, angle: float
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in radii along the object's own axes."""
    x, y = _grid(size)
    x, y = x - np.float32(shift[0]), y - np.float32(shift[1])
    cos, sin = np.float32(np.cos(angle) / radius), np.float32(np.sin(angle) / radius)
    return x * cos + y * sin, y * cos - x * sin


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Membership of figures of about equal area, centred on their centroid, (u, v) in radii."""
    if shape == "circle":
        return u * u + v * v <= 1
    if shape == "square":
        return np.maximum(abs(u), abs(v)) <= 0.886
    if shape == "triangle":
        # Circumradius 1.45: the height ends 0.725 below the centroid.
        return (v <= 0.725) & (abs(u) * np.float32(3**0.5) - v <= 1.45)
    return (np.minimum(abs(u), abs(v)) <= 0.42) & (np.maximum(abs(u), abs(v)) <= 1.14)


def _texture(
    texture: str, shape: str, pu: np.ndarray, pv: np.ndarray, u: np.ndarray, v: np.ndarray
) -> np.ndarray:
    """Where an object has its second tone; (pu, pv) are (u, v) with the texture's phase."""
    if texture == "solid":
        return np.zeros(u.shape, bool)
    if texture == "striped":
        return np.floor(pu / _STRIPE) % 2 == 1
    if texture == "checkered":
        return (np.floor(pu / _CHECK) + np.floor(pv / _CHECK)) % 2 == 1
    return _inside(shape, u / np.float32(_RING), v / np.float32(_RING))


def _downsample(mask: np.ndarray, size: int) -> np.ndarray:
    """Share of each pixel that the mask covers."""
    blocks = mask.reshape(size, _SUPERSAMPLING, size, _SUPERSAMPLING)
    return blocks.sum((1, 3), dtype=np.float32) / _SUPERSAMPLING**2


def _background(size: int, random: np.random.Generator, hue: float) -> np.ndarray:
    """A linear gradient between two muted shades of one hue, (size, size, 3)."""
    line = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    angle = random.uniform(0, 2 * np.pi)
    ramp = 0.5 + 0.7 * (line[None, :] * np.cos(angle) + line[:, None] * np.sin(angle))
    saturation = random.uniform(0.1, 0.4)
    ends = [_rgb(hue, saturation, value) for value in random.uniform(0.42, 0.68, 2)]
    return (ends[0] + (ends[1] - ends[0]) * ramp[..., None]).astype(np.float32)


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)


def _third(value: float, low: float, high: float) -> int:
    return min(2, int(3 * (value - low) / (high - low)))


def _caption(attributes: dict[str, int]) -> str:
    row, column = divmod(attributes["position"], 3)
    place = f"{('top', 'middle', 'bottom')[row]} {('left', 'centre', 'right')[column]}"
    size = ("small", "medium-sized", "large")[attributes["size"]]
    shape, texture = SHAPES[attributes["shape"]], TEXTURES[attributes["texture"]]
    hue, behind = HUES[attributes["hue"]], HUES[attributes["background"]]
    return f"a {size} {hue} {texture} {shape} on a {behind}-grey background, {place}"
