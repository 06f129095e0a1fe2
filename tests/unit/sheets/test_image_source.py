"""Images of a corpus, whatever holds them: which, in which order, and how many at a time."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from gear_dist.config.data import DataConfig
from gear_dist.data.crops import CropSettings, Placement, take_crop
from gear_dist.errors import DataError
from gear_dist.sheets.image_source import ImageSource
from image_files import encode, tar_bytes
from refusals import refused
from sample_shards import SampleShards

DATA = DataConfig(image_size=32)


def source(address: object, share: float = 0.0) -> ImageSource:
    return ImageSource(str(address), DATA, option="--corpus", max_bad_share=share)


def test_a_folder_shards_and_an_object_store_have_the_same_images(
    sample_shards: SampleShards,
) -> None:
    addresses = (
        sample_shards.tree / "train",
        f"{sample_shards.file}/train",
        f"{sample_shards.s3}/train",
    )
    found = []
    for address in addresses:
        images = source(address)
        batches = list(images.batches(50))
        assert [len(batch.names) for batch in batches] == [50, 50, 50, 42]
        assert images.total == 192
        names = [name for batch in batches for name in batch.names]
        assert len(set(names)) == 192
        found.append({pixels.numpy().tobytes() for batch in batches for pixels in batch.pixels})
    assert found[0] == found[1] == found[2]


def test_pixels_are_the_loaders_centre_crops(tmp_path: Path) -> None:
    data = encode(3, size=(90, 60))
    (tmp_path / "wide.jpg").write_bytes(data)
    [batch] = source(tmp_path).batches(4)
    wanted = take_crop(data, CropSettings(32), Placement())
    assert np.array_equal(batch.pixels[0].permute(1, 2, 0).numpy(), wanted)
    assert (batch.names, batch.pixels.dtype) == (["wide.jpg"], torch.uint8)


def test_tars_of_others_and_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "stock").mkdir()
    members = {"a.png": encode(1, "PNG"), "a.txt": b"one", "b.png": encode(2, "PNG")}
    (tmp_path / "stock" / "0.tar").write_bytes(tar_bytes(members))
    [batch] = source(tmp_path / "stock").batches(4)
    assert batch.names == ["0.tar:a", "0.tar:b"]
    (tmp_path / "mac").mkdir()
    (tmp_path / "mac" / "a.png").write_bytes(members["a.png"])
    (tmp_path / "mac" / "._a.png").write_bytes(b"no image")
    [batch] = source(tmp_path / "mac").batches(4)
    assert batch.names == ["a.png"]


def test_the_first_ones(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.png").write_bytes(encode(number, "PNG"))
    (tmp_path / "1.png").write_bytes(b"damaged")
    batches = list(source(tmp_path, 0.5).batches(2, 5))
    names = [name for batch in batches for name in batch.names]
    assert names == ["0.png", "2.png", "3.png", "4.png", "5.png"]


def test_few_are_read_ahead(tmp_path: Path) -> None:
    """Whatever the corpus's size, memory holds a few batches."""
    for number in range(60):
        (tmp_path / f"{number:02}.png").write_bytes(encode(number, "PNG"))
    images = source(tmp_path)
    reads = []
    read = images.storage.read
    images.storage.read = lambda key: reads.append(key) or read(key)  # type: ignore[method-assign]
    used = 0
    for batch in images.batches(5):
        # In use, waiting in the queue, waiting for room in it, and being decoded.
        assert len(reads) <= used + 4 * 5
        used += len(batch.names)
    assert used == len(reads) == 60


def test_bad_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(encode(number, "PNG"))
    (tmp_path / "3.png").write_bytes(b"damaged")
    assert sum(len(batch.names) for batch in source(tmp_path, 0.1).batches(4)) == 9
    assert "3.png" in capsys.readouterr().err
    with refused(DataError, "3.png", "--max-bad-share"):
        list(source(tmp_path).batches(4))
    (tmp_path / "5.png").write_bytes(b"damaged")
    with refused(DataError, "5.png", "2 of 10", "--max-bad-share"):
        list(source(tmp_path, 0.1).batches(4))


def test_a_bad_image_counts_once_in_each_pass(tmp_path: Path) -> None:
    """`look neighbours` reads the first images of a corpus, and then all."""
    for place in range(10):
        (tmp_path / f"{place}.png").write_bytes(encode(place, "PNG"))
    (tmp_path / "3.png").write_bytes(b"damaged")
    images = source(tmp_path, share=0.1)
    for _ in range(3):
        assert sum(len(part.names) for part in images.batches(4)) == 9


def test_a_damaged_shard_is_named(sample_shards: SampleShards, tmp_path: Path) -> None:
    origin = Path(sample_shards.file.removeprefix("file://")) / "train"
    for path in origin.rglob("*.*"):
        copy = tmp_path / "train" / path.relative_to(origin)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    with (tmp_path / "train/shards/000001.tar").open("r+b") as file:
        file.seek(700)
        file.write(b"damage")
    with refused(DataError, "000001.tar", "checksum"):
        list(source(tmp_path / "train").batches(64))


def test_larger_images_than_allowed(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(encode(1, "PNG", (64, 64)))
    small = dataclasses.replace(DATA, max_pixels=1000)
    images = ImageSource(str(tmp_path), small, option="--corpus", max_bad_share=1)
    with refused(DataError, "--corpus", tmp_path):
        list(images.batches(1))
