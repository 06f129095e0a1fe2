"""What of an image is accepted, converted, or refused with a kind and a reason."""

import contextlib
import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import skimage
from PIL import Image

from gear_data_prep.images.captions import check_captions
from gear_data_prep.images.checks import CHECKS, ImageSettings, check_image
from gear_data_prep.images.jpeg_codes import can_read_codes
from gear_data_prep.images.resize import ResizeSettings, resize_image
from gear_data_prep.policies import POLICIES, parse_policies
from gear_data_prep.samples import BadSampleError, parse_sidecar
from gear_dist.data.images import decode_image
from gear_dist.errors import ConfigError
from image_files import encode
from refusals import refused

SETTINGS = ImageSettings(read_codes=can_read_codes())


def with_policy(*choices: str) -> ImageSettings:
    return SETTINGS._replace(policies=parse_policies(list(choices)))


def kind_of(data: bytes, suffix: str = "jpg", settings: ImageSettings = SETTINGS) -> str:
    with pytest.raises(BadSampleError) as caught:
        check_image(data, suffix, settings)
    return caught.value.kind


@pytest.mark.parametrize(
    ("kind", "suffix", "options"),
    [
        ("JPEG", "jpg", {}),
        ("JPEG", "jpg", {"progressive": True}),
        ("JPEG", "jpg", {"mode": "L"}),
        ("PNG", "png", {}),
        ("PNG", "png", {"mode": "RGBA"}),
        ("WEBP", "webp", {}),
        ("BMP", "bmp", {}),
    ],
)
def test_good_images_are_copied(kind: str, suffix: str, options: dict) -> None:
    data = encode(1, kind, **options)
    found = check_image(data, suffix, SETTINGS)
    assert (found.data, found.suffix, found.width, found.height) == (data, suffix, 64, 48)
    assert check_image(data, "", SETTINGS) == found, "a source that names no format"


def grainy(seed: int) -> bytes:
    """As dense as a photograph: in smooth pictures a garbled code often stands for another."""
    pixels = np.random.default_rng(seed).normal(128, 25, (300, 400, 3)).clip(0, 255)
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


@pytest.mark.parametrize(("by_codes", "least"), [(True, 36), (False, 34)])
def test_corruption_of_jpegs(by_codes: bool, least: int) -> None:
    """Cut in half, 4 KiB zeroed, 16 bytes garbled: most of it passes other decoders."""
    settings = ImageSettings(read_codes=by_codes)
    rng = random.Random(0)
    found = {"cut": 0, "zeroed": 0, "garbled": 0}
    for seed in range(40):
        data = grainy(seed)
        start = rng.randrange(1000, len(data) - 5000)
        garbled = bytearray(data)
        garbled[start : start + 16] = rng.randbytes(16)
        spoilt = {
            "cut": data[: len(data) // 2],
            "zeroed": data[:start] + bytes(4096) + data[start + 4096 :],
            "garbled": bytes(garbled),
        }
        for name, image in spoilt.items():
            try:
                check_image(image, "jpg", settings)
            except BadSampleError:
                found[name] += 1
    assert found["cut"] == found["zeroed"] == 40
    assert found["garbled"] >= least


def test_a_hole_that_decodes_in_step() -> None:
    """Zeros that end exactly where they should: no decoder complains, flat images stay good."""
    with Image.open(Path(skimage.__file__).parent / "data/chelsea.png") as opened:
        stream = io.BytesIO()
        opened.convert("RGB").save(stream, "JPEG", quality=94)
    data, hits = stream.getvalue(), 0
    for start in range(2000, len(data) - 6000, 300):
        holed = data[:start] + bytes(4096) + data[start + 4096 :]
        with contextlib.suppress(ValueError):
            simplejpeg.decode_jpeg(holed, strict=True)
            hits += 1
        assert kind_of(holed) == "corrupt"
    assert hits, "no decoder passed one: the test has to look for others"
    for options in ({}, {"optimize": True}, {"progressive": True}):
        stream = io.BytesIO()
        Image.new("RGB", (2000, 2000), "black").save(stream, "JPEG", **options)
        assert check_image(stream.getvalue() + bytes(2000), "jpg", SETTINGS).width == 2000


def test_checks_find_what_they_say() -> None:
    data = encode(3, size=(400, 300), quality=95)
    cut = data[: len(data) // 2]
    assert check_image(cut, "jpg", ImageSettings("header")).width == 400
    assert kind_of(cut, settings=ImageSettings("decode")) == "undecodable"
    assert kind_of(cut) == "corrupt"
    assert check_image(cut, "jpg", with_policy("corrupt=keep")).data == cut
    png = encode(3, "PNG")
    assert kind_of(png[:-40], "png") == "undecodable"
    assert check_image(png[:-40], "png", ImageSettings("header")).suffix == "png"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "empty"),
        (b"<html>", "undecodable"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 100, "undecodable"),
        (encode(0, size=(300, 3)), "too-long"),
        (encode(0, size=(300, 200)), "too-large"),
        (b"\xff\xd8\xff" + b"x" * 20_000, "too-large"),
    ],
)
def test_bad_images(data: bytes, kind: str) -> None:
    assert kind_of(data, settings=ImageSettings(max_pixels=50_000, max_bytes=16_000)) == kind


def test_a_bomb_is_refused_by_its_header() -> None:
    """900 million pixels in 130 kB: never decoded."""
    stream = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(stream, "PNG")
    assert kind_of(stream.getvalue(), "png") == "too-large"


def test_scans_are_limited() -> None:
    data = encode(0, progressive=True)
    assert kind_of(data[:-2] + b"\xff\xda\0\x08" * 200 + data[-2:]) == "too-large"


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("check", CHECKS)
def test_what_stands_behind_a_jpeg_is_none_of_its_faults(check: str, progressive: bool) -> None:
    """A film's bytes hold what would be scans, holes and ends in a picture."""
    picture, film = encode(1, progressive=progressive), bytes(4096).join([b"\xff\xda\0\x03"] * 300)
    settings = SETTINGS._replace(check=check)
    for behind in (b"\0", b"\r\n", film, film + b"\xff\xd9", picture + film + picture):
        found = check_image(picture + behind, "jpg", settings, short_side=16)
        assert (found.data, found.width) == (picture + behind, 64)


def test_an_end_inside_a_segment_hides_no_scans() -> None:
    data = encode(0, progressive=True)
    comment = b"\xff\xfe\0\x04\xff\xd9"
    scans = b"\xff\xda\0\x08" * 200
    assert kind_of(data[:2] + comment + data[2:-2] + comment + scans + data[-2:]) == "too-large"
    assert kind_of(data[:-2] + b"\xff\xfe\0\x02" * 2000 + scans + data[-2:]) == "too-large"


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


@pytest.mark.parametrize("check", CHECKS)
def test_texts_in_a_png_are_none_of_its_faults(check: str) -> None:
    """A workflow of megabytes, a profile, texts that are damaged: no pixel depends on them."""
    picture = encode(1, "PNG")
    long_text = png_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(3 << 20)))
    profile = png_chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(3 << 20)))
    many = png_chunk(b"zTXt", b"t\0\0" + zlib.compress(bytes(1 << 20))) * 70
    unknown, garbled = png_chunk(b"zTXt", b"t\0\7x"), png_chunk(b"tEXt", b"t\0x")[:-1] + b"!"
    settings = SETTINGS._replace(check=check)
    for words in (long_text, profile, many, unknown, garbled):
        for at in (33, len(picture) - 12):
            data = picture[:at] + words + picture[at:]
            found = check_image(data, "png", settings, short_side=16)
            assert (found.data, found.width, found.odd) == (data, 64, ())
            assert decode_image(data, 10_000).tobytes() == decode_image(picture, 10_000).tobytes()
    assert kind_of(picture[:33] + long_text + picture[33:-40], "png") == "undecodable"


@pytest.mark.parametrize(
    ("kind", "data", "suffix", "made"),
    [
        ("cmyk", encode(1, mode="CMYK"), "jpg", "jpg"),
        ("palette", encode(1, "PNG", mode="P"), "png", "png"),
        ("16-bit", encode(1, "PNG", mode="I"), "png", "png"),
        ("format", encode(1, "GIF"), "gif", "png"),
        ("format", encode(1, "TIFF"), "tif", "png"),
        ("mislabelled", encode(1, "PNG"), "jpg", "png"),
    ],
)
def test_odd_images_are_converted_or_refused(
    kind: str, data: bytes, suffix: str, made: str
) -> None:
    found = check_image(data, suffix, SETTINGS)
    assert (found.suffix, found.width, found.height) == (made, 64, 48)
    with Image.open(io.BytesIO(found.data)) as image:
        assert image.mode == "RGB"
    assert check_image(data, suffix, SETTINGS) == found, "twice the same bytes"
    assert kind_of(data, suffix, with_policy(f"{kind}=quarantine")) == kind
    if "keep" in POLICIES[kind].allowed:
        assert check_image(data, suffix, with_policy(f"{kind}=keep")).data == data


def test_animations_give_their_first_frame() -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    stream = io.BytesIO()
    frames[0].save(stream, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    found = check_image(stream.getvalue(), "webp", SETTINGS)
    with Image.open(io.BytesIO(found.data)) as image:
        assert image.getpixel((5, 5)) == (255, 0, 0)
    assert kind_of(stream.getvalue(), "webp", with_policy("animated=skip")) == "animated"


def test_hostile_bytes_never_crash() -> None:
    rng = random.Random(1)
    originals = [encode(1), encode(1, "PNG"), encode(1, "WEBP"), encode(1, "GIF"),
                 encode(1, "TIFF"), encode(1, "BMP"), encode(1, progressive=True)]  # fmt: skip
    for number in range(700):
        data = bytearray(originals[number % len(originals)])
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        cut = bytes(data[: rng.randrange(len(data) // 2, len(data) + 1)])
        with contextlib.suppress(BadSampleError):
            check_image(cut, "", SETTINGS)


def test_policies() -> None:
    assert parse_policies(["cmyk=skip"])["cmyk"] == "skip"
    with refused(ConfigError, "--policy pink=skip", "empty", "cmyk", "broken-tar"):
        parse_policies(["pink=skip"])
    with refused(ConfigError, "--policy empty=convert", "quarantine", "skip"):
        parse_policies(["empty=convert"])


def test_captions() -> None:
    policies = parse_policies([])
    assert check_captions((b"one", " \n", "two"), policies) == (("", "one"), ("", "two"))
    assert check_captions((), policies) == ()
    for bad in (b"\xff", "\ud800"):
        with refused(BadSampleError, "UTF-8") as caught:
            check_captions((bad,), policies)
        assert caught.value.kind == "bad-caption"
        mended = check_captions((bad,), parse_policies(["bad-caption=convert"]))
        assert mended[0].text.encode()
    with refused(BadSampleError) as caught:
        check_captions((b"  ",), parse_policies(["no-caption=skip"]))
    assert caught.value.kind == "no-caption"
    with refused(BadSampleError, "2000 captions") as caught:
        check_captions(("a",) * 2000, policies)
    assert caught.value.kind == "bad-caption"


def test_sidecars() -> None:
    assert parse_sidecar(b'{"caption": "a", "hue": 3}', strict=True)[:2] == (("a",), {"hue": 3})
    assert parse_sidecar(b'{"captions": ["a", "b"]}', strict=True)[:2] == (("a", "b"), {})
    assert parse_sidecar(b'{"caption": null, "w": 1.5}', strict=False)[:2] == ((), {})
    for bad in (b"{", b"[1]", b'{"a": true}', b'{"a": -1}', b"[" * 100_000):
        with pytest.raises(BadSampleError):
            parse_sidecar(bad, strict=True)
    with refused(BadSampleError, "captions", "text") as caught:
        parse_sidecar(b'{"captions": [1]}', strict=False)
    assert caught.value.kind == "bad-caption"


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_bicubic_resize_is_pils(kind: str) -> None:
    data = encode(4, kind, size=(500, 375), **({"quality": 95} if kind == "JPEG" else {}))
    checked = check_image(data, "", SETTINGS)
    small = resize_image(checked, ResizeSettings(256), 1 << 30)
    assert (small.suffix, small.width, small.height) == ("jpg", 341, 256)
    with Image.open(io.BytesIO(data)) as image:
        wanted = np.asarray(image.convert("RGB").resize((341, 256), Image.Resampling.BICUBIC))
    same = simplejpeg.encode_jpeg(np.ascontiguousarray(wanted), 98, colorsubsampling="444")
    assert small.data == same


def test_area_resize_is_close_and_small_images_stay() -> None:
    checked = check_image(encode(4, size=(500, 375), quality=95), "", SETTINGS)
    area = resize_image(checked, ResizeSettings(128, "area"), 1 << 30)
    bicubic = resize_image(checked, ResizeSettings(128), 1 << 30)
    assert (area.width, area.height) == (bicubic.width, bicubic.height) == (170, 128)
    first, second = (simplejpeg.decode_jpeg(image.data).astype(float) for image in (area, bicubic))
    assert 10 * np.log10(255**2 / ((first - second) ** 2).mean()) > 35
    assert resize_image(checked, ResizeSettings(400), 1 << 30) is checked
