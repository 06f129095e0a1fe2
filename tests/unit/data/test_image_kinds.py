"""Transparency, EXIF orientation, 16-bit and float greys: the same wherever images are decoded."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from gear_data_prep.__main__ import main as data_prep
from gear_data_prep.images.checks import ImageSettings, check_image
from gear_data_prep.sharding.plan import PlanSettings
from gear_dist.config.colour import parse_colour
from gear_dist.config.data import DataConfig
from gear_dist.config.schema import RunConfig
from gear_dist.data.crops import CropSettings, Placement, take_crop
from gear_dist.data.images import BadImageError, decode_image, jpeg_orientation
from gear_dist.data.labelled import LoadSettings, load_labelled
from gear_dist.data.manifest import load_samples
from gear_dist.errors import ConfigError
from gear_dist.inference.image_files import read_image
from gear_dist.storage.open import open_storage
from image_files import encode
from loader_cases import make_loader, take
from refusals import refused

RED, BLUE = (200, 30, 30), (0, 0, 255)


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def half_transparent() -> np.ndarray:
    """Left transparent over black, right red; RGBA."""
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[:, 16:] = (*RED, 255)
    return pixels


def transparent(mode: str) -> bytes:
    """The same picture, its left side transparent by every means that PNG, GIF and WebP have."""
    pixels = half_transparent()
    rgba = Image.fromarray(pixels)
    if mode in ("RGBA", "LA"):
        return saved(rgba.convert(mode))
    if mode == "WEBP":
        return saved(rgba, "WEBP", lossless=True)
    if mode == "GIF":
        indexed = Image.fromarray((pixels[:, :, 3] > 0).astype(np.uint8), "P")
        indexed.putpalette([0, 0, 0, *RED])
        return saved(indexed, "GIF", transparency=0)
    if mode == "P":
        indexed = Image.fromarray((pixels[:, :, 3] > 0).astype(np.uint8), "P")
        indexed.putpalette([0, 0, 0, *RED])
        return saved(indexed, transparency=b"\0\xff")
    if mode == "I;16":
        return saved(Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 256), transparency=0)
    opaque = rgba.convert(mode)
    return saved(opaque, transparency=0 if mode == "L" else (0, 0, 0))


MODES = ["RGBA", "LA", "P", "RGB", "L", "I;16", "GIF", "WEBP"]


@pytest.mark.parametrize("mode", MODES)
def test_transparent_pixels_show_the_background(mode: str) -> None:
    data = transparent(mode)
    for background in ((255, 255, 255), (0, 128, 255)):
        image = decode_image(data, 10**6, background)
        assert image.mode == "RGB"
        assert image.getpixel((3, 3)) == background
        right = image.getpixel((28, 3))
        assert right == (RED if mode in ("RGBA", "P", "RGB", "GIF", "WEBP") else (right[0],) * 3)
        assert right[0] < 255
        settings = CropSettings(32, background=background)
        assert np.array_equal(take_crop(data, settings, Placement()), np.asarray(image))
    assert decode_image(data, 10**6).getpixel((3, 3)) == (255, 255, 255)


def test_partly_transparent_pixels_are_mixed_and_opaque_ones_stay() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (16, 16, 4), np.uint8)
    pixels[8:, :, 3] = 255
    found = np.asarray(decode_image(saved(Image.fromarray(pixels)), 10**6, (10, 200, 90)))
    alpha = pixels[:, :, 3:].astype(int)
    mixed = (pixels[:, :, :3] * alpha + np.array([10, 200, 90]) * (255 - alpha)) / 255
    assert np.abs(found - mixed).max() < 1
    assert np.array_equal(found[8:], pixels[8:, :, :3])
    opaque = np.dstack([pixels[:, :, :3], np.full((16, 16), 255, np.uint8)])
    found = decode_image(saved(Image.fromarray(opaque)), 10**6, (0, 0, 0))
    assert np.array_equal(np.asarray(found), pixels[:, :, :3])


def test_a_transparent_colour_of_16_bits() -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    pixels = np.full((4, 8, 3), 0x1234, ">u2")
    pixels[:, 4:] = (0xC8FF, 0x1E00, 0x1E80)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    data = b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 4, 16, 2, 0, 0, 0)),
            chunk(b"tRNS", struct.pack(">HHH", 0x1234, 0x1234, 0x1234)),
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        ]
    )
    image = decode_image(data, 10**6, (0, 255, 0))
    assert (image.getpixel((1, 1)), image.getpixel((6, 1))) == ((0, 255, 0), RED)


def test_plans_of_an_earlier_version_are_read() -> None:
    node = json.loads(json.dumps(PlanSettings().dump()))
    del node["image"]["background"]
    for kind in ("transparency", "orientation", "extra-image", "duplicate-name"):
        del node["image"]["policies"][kind]
    assert PlanSettings.load(node) == PlanSettings()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two transparent pictures, of which one is converted, and an opaque one with alpha."""
    folder = tmp_path_factory.mktemp("alpha")
    (folder / "in/a").mkdir(parents=True)
    (folder / "in/a/0.png").write_bytes(transparent("RGBA"))
    (folder / "in/a/1.png").write_bytes(transparent("P"))
    opaque = half_transparent()
    opaque[:, :, 3] = 255
    (folder / "in/a/2.png").write_bytes(saved(Image.fromarray(opaque)))
    return folder


def shard(folder: Path, out: Path, *options: str) -> dict:
    command = ["shard", str(folder), str(out), "--validation-share", "0", *options]
    assert data_prep(command) == 0
    return json.loads((out / "train/manifest/quarantine.json").read_text())


def test_every_reader_of_a_corpus_sees_the_same(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = shard(corpus / "in", out, "--background", "#00ff00")
    assert report["odd"] == {"palette": 1, "transparency": 2}
    raw, converted, opaque = (255, 0, 0), (0, 255, 0), (0, 0, 0)
    corners = sorted([raw, converted, opaque])
    address = str(out / "train")
    (batch,) = take(
        make_loader(address, batch_size=3, flip=0.0, num_classes=1, background="red"), 1
    )
    assert sorted(tuple(p) for p in batch.images[:, :, 3, 3].tolist()) == corners
    loaded = load_labelled(address, LoadSettings(32, background=parse_colour("255,0,0")))
    assert sorted(tuple(p) for p in loaded.images[:, :, 3, 3].tolist()) == corners
    command = ["preview", address, "--out", str(tmp_path / "sheet.png"), "--count", "3"]
    assert data_prep([*command, "--side", "32", "--background", "1,2,250"]) == 0
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    seen = {tuple(pixel) for pixel in sheet.reshape(-1, 3).tolist()}
    assert {converted, opaque, (1, 2, 250)} <= seen, "what is converted keeps its background"
    config = RunConfig(data=DataConfig(image_size=32, background="red"))
    image = read_image(corpus / "in/a/0.png", config.data)
    assert tuple(image[:, 3, 3].tolist()) == raw
    assert torch.equal(image[:, 3, 28], torch.tensor(RED, dtype=torch.uint8))


def test_policies_for_transparency(corpus: Path, tmp_path: Path) -> None:
    report = shard(
        corpus / "in", tmp_path / "a", "--policy", "transparency=skip", "--max-bad-share", "1"
    )
    assert report["skipped"] == {"transparency": 2}
    shard(corpus / "in", tmp_path / "b", "--policy", "transparency=convert")
    (batch,) = take(
        make_loader(str(tmp_path / "b/train"), batch_size=3, num_classes=1, background="red"), 1
    )
    assert {tuple(p) for p in batch.images[:, :, 3, 16].tolist()} <= {
        (255, 255, 255), (0, 0, 0), RED
    }  # fmt: skip
    shard(corpus / "in", tmp_path / "c", "--short-side", "16", "--background", "blue")
    rows = load_samples(open_storage(str(tmp_path / "c/train"))).to_pylist()
    storage = open_storage(str(tmp_path / "c/train"))
    corners = []
    for row in rows:
        data = storage.read_range(f"shards/{row['shard']:06d}.tar", row["offset"], row["bytes"])
        assert data.startswith(b"\xff\xd8\xff")
        corners.append(np.asarray(Image.open(io.BytesIO(data)))[2, 2].astype(int))
    blue = [corner for corner in corners if np.abs(corner - BLUE).max() < 12]
    assert len(blue) == 2


@pytest.mark.parametrize("text", ["white", "#ffffff", "#FFF", "255,255,255", " 255, 255,255"])
def test_colours(text: str) -> None:
    assert parse_colour(text) == (255, 255, 255)


@pytest.mark.parametrize("text", ["", "no colour", "1,2", "1,2,256", "-1,2,3", "#12345678"])
def test_colours_that_are_none(text: str, tmp_path: Path) -> None:
    with refused(ConfigError, f"data.background={text}", "#rrggbb"):
        DataConfig(background=text)
    assert data_prep(["shard", str(tmp_path), str(tmp_path / "o"), f"--background={text}"]) == 2


# -- EXIF orientation -----------------------------------------------------------------------


def oriented(orientation: int, kind: str = "JPEG", size: tuple[int, int] = (96, 64)) -> bytes:
    exif = Image.Exif()
    exif[0x112] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    options |= {"lossless": True} if kind == "WEBP" else {}
    rng = np.random.default_rng(5)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8))
    image = coarse.resize(size, Image.Resampling.BICUBIC)
    return saved(image, kind, exif=exif, **options)


def by_pil(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright_wherever_they_are_decoded(kind: str, orientation: int) -> None:
    data = oriented(orientation, kind)
    expected = by_pil(data)
    assert expected.shape[0] == (96 if orientation > 4 else 64)
    assert np.array_equal(np.asarray(decode_image(data, 10**6)), expected)
    short = min(expected.shape[:2])
    for place in (Placement(), Placement(0.999, 0.2, True), Placement(0.0, 0.9)):
        found = take_crop(data, CropSettings(short), place)
        x = int(place.left * (expected.shape[1] - short + 1))
        y = int(place.top * (expected.shape[0] - short + 1))
        wanted = expected[y : y + short, x : x + short]
        assert np.array_equal(found, wanted[:, ::-1] if place.flip else wanted)
    checked = check_image(data, "", ImageSettings(), short_side=32)
    assert (checked.height, checked.width) == expected.shape[:2]
    if checked.pixels is not None:
        assert np.array_equal(checked.pixels[:, :, :3], expected)
    assert ("orientation" in checked.odd) == (orientation > 1 and kind != "TIFF")
    if kind == "JPEG":
        assert jpeg_orientation(data) == orientation
        fast = take_crop(data, CropSettings(16, decoding="fast"), Placement()).astype(int)
        exact = take_crop(data, CropSettings(16), Placement())
        assert np.abs(fast - exact).mean() < 12


@pytest.mark.parametrize("options", [[], ["--short-side", "48"], ["--policy=orientation=convert"]])
def test_sharding_keeps_pictures_upright(tmp_path: Path, options: list[str]) -> None:
    """A raw copy keeps its tag, which the loader obeys; pixels that are re-encoded need none."""
    (tmp_path / "in/a").mkdir(parents=True)
    (tmp_path / "in/a/0.jpg").write_bytes(oriented(6))
    report = shard(tmp_path / "in", tmp_path / "out", *options)
    assert report["odd"] == {"orientation": 1}
    storage = open_storage(str(tmp_path / "out/train"))
    (row,) = load_samples(storage).to_pylist()
    assert (row["width"], row["height"]) == ((48, 72) if "--short-side" in options else (64, 96))
    data = storage.read_range("shards/000000.tar", row["offset"], row["bytes"])
    assert jpeg_orientation(data) == (1 if options else 6)
    loader = make_loader(str(tmp_path / "out/train"), batch_size=1, flip=0.0, num_classes=1)
    (batch,) = list(loader.validation_batches())
    picture = Image.fromarray(by_pil(oriented(6))).resize((32, 48), Image.Resampling.BICUBIC)
    wanted = np.asarray(picture)[8:40].astype(int)
    assert np.abs(batch.images[0].permute(1, 2, 0).numpy() - wanted).mean() < 3


def _with_segments(data: bytes, *segments: bytes) -> bytes:
    return data[:2] + b"".join(segments) + data[2:]


@pytest.mark.parametrize(
    "exif",
    [
        b"", b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0XX*\0\x08\0\0\0\1\0",
        b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\x09\0\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\2\0\1\0\0\0\x06\0\0\0",
    ],
)  # fmt: skip
def test_odd_exif_data_say_nothing(exif: bytes) -> None:
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    data = _with_segments(encode(1), segment)
    assert jpeg_orientation(data) == 1
    assert np.array_equal(np.asarray(decode_image(data, 10**6)), by_pil(encode(1)))
    for length in range(12):
        assert jpeg_orientation(data[:length]) == 1


def test_exif_behind_other_segments() -> None:
    data = oriented(6)
    comment = b"\xff\xfe\0\x22" + b"c" * 32
    profile = b"\xff\xe2\xff\xff" + b"p" * 65533
    assert jpeg_orientation(_with_segments(data, comment, profile, profile)) == 6


# -- more than 8 bits -----------------------------------------------------------------------


def _ramp(low: float, high: float, dtype: type) -> Image.Image:
    return Image.fromarray(np.tile(np.linspace(low, high, 64), (48, 1)).astype(dtype))


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (lambda: _ramp(0, 1, np.float32), "TIFF"),
        (lambda: _ramp(0, 65535, np.uint16), "TIFF"),
        (lambda: _ramp(0, 65535, np.uint16), "PNG"),
        (lambda: _ramp(0, 65535, np.int32), "TIFF"),
        (lambda: _ramp(0, 255, np.uint16), "PNG"),
        (lambda: _ramp(0, 255, np.int32), "TIFF"),
    ],
)
def test_greys_are_scaled(image: Callable[[], Image.Image], kind: str, tmp_path: Path) -> None:
    data = saved(image(), kind)
    found = np.asarray(decode_image(data, 10**6)).astype(int)
    assert np.abs(found[0, :, 0] - np.linspace(0, 255, 64)).max() <= 1
    (tmp_path / "in/a").mkdir(parents=True)
    (tmp_path / f"in/a/0.{kind.lower()}").write_bytes(data)
    report = shard(tmp_path / "in", tmp_path / "out")
    assert report["odd"]["16-bit"] == 1


@pytest.mark.parametrize(
    "image",
    [
        lambda: _ramp(0, 255, np.float32),
        lambda: _ramp(-1, 1, np.float32),
        lambda: Image.fromarray(np.full((48, 64), np.nan, np.float32)),
        lambda: _ramp(0, 1 << 20, np.int32),
        lambda: _ramp(-500, 500, np.int32),
    ],
)
def test_greys_without_a_known_scale_are_refused(
    image: Callable[[], Image.Image], tmp_path: Path
) -> None:
    data = saved(image(), "TIFF")
    with refused(BadImageError, "scale"):
        decode_image(data, 10**6)
    (tmp_path / "in/a").mkdir(parents=True)
    (tmp_path / "in/a/0.tif").write_bytes(data)
    (tmp_path / "in/a/1.jpg").write_bytes(encode(1))
    report = shard(tmp_path / "in", tmp_path / "out", "--max-bad-share", "0.5")
    assert report["kinds"] == {"undecodable": 1}
    assert "scale" in report["samples"][0]["reason"]
