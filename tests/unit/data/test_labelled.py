"""A labelled corpus in memory: what is loaded, how it is cropped, what is refused."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gear_data_prep.__main__ import main as data_prep
from gear_dist.data.labelled import LoadSettings, load_labelled
from gear_dist.errors import DataError
from refusals import refused


def test_whole_corpus_with_classes_and_attributes(sample_shards):
    data = load_labelled(sample_shards.s3 + "/train", LoadSettings(32))
    assert data.images.shape == (192, 3, 32, 32)
    assert data.images.dtype == torch.uint8
    assert torch.bincount(data.labels).tolist() == [12] * 16
    assert data.num_classes == 16
    # A class is a shape with a texture, so each has one value of either.
    for name in ("shape", "texture"):
        values = [data.attributes[name][data.labels == c].unique() for c in range(16)]
        assert all(len(found) == 1 for found in values)
        assert data.attribute_sizes[name] == 4
    assert set(data.targets()) == {"class", *data.attribute_sizes}


def test_images_are_those_of_the_tree(sample_shards):
    data = load_labelled(sample_shards.file + "/validation", LoadSettings(32))
    stored = {bytes(image.numpy().tobytes()) for image in data.images}
    expected = set()
    for path in (sample_shards.tree / "val").rglob("*.jpg"):
        pixels = np.asarray(Image.open(path)).transpose(2, 0, 1)
        expected.add(np.ascontiguousarray(pixels).tobytes())
    assert stored == expected


def test_a_limit_takes_some_shards_the_same_way_each_time(sample_shards):
    settings = LoadSettings(32, max_images=70, seed=3)
    first = load_labelled(sample_shards.file + "/train", settings)
    again = load_labelled(sample_shards.file + "/train", settings)
    assert len(first.images) == first.num_sources == 70
    assert torch.equal(first.images, again.images)
    other = load_labelled(sample_shards.file + "/train", settings._replace(seed=4))
    assert not torch.equal(first.images, other.images)
    by_bytes = load_labelled(
        sample_shards.file + "/train", LoadSettings(32, max_bytes=10 * 3 * 32 * 32)
    )
    assert len(by_bytes.images) == 10


@pytest.fixture(scope="module")
def photograph_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five wide images in two classes, a ramp from left to right each."""
    tree = tmp_path_factory.mktemp("wide")
    ramp = np.broadcast_to(np.arange(96, dtype=np.uint8)[None, :, None] * 2, (40, 96, 3))
    for index in range(5):
        folder = tree / ("a" if index % 2 else "b")
        folder.mkdir(exist_ok=True)
        stream = io.BytesIO()
        Image.fromarray(ramp).save(stream, "PNG")
        (folder / f"{index}.png").write_bytes(stream.getvalue())
        (folder / f"{index}.json").write_text(json.dumps({"kind": index % 3}))
    return tree


@pytest.fixture(scope="module")
def photograph_shards(photograph_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    destination = tmp_path_factory.mktemp("wide_shards").as_uri()
    options = ["--workers", "1", "--validation-share", "0"]
    assert data_prep(["shard", str(photograph_tree), destination, *options]) == 0
    return destination + "/train"


def test_few_photographs_give_several_crops(photograph_shards):
    single = load_labelled(photograph_shards, LoadSettings(20))
    assert single.images.shape == (5, 3, 20, 20)
    centre = single.images[0, 0, 0].float().mean()
    assert centre == pytest.approx(95, abs=2)
    several = load_labelled(photograph_shards, LoadSettings(20, augment_below=20))
    assert several.images.shape == (20, 3, 20, 20)
    assert several.num_sources == 5
    assert torch.equal(several.images[::4], single.images)
    assert torch.equal(several.labels[::4], single.labels)
    assert several.labels.view(5, 4).float().std(dim=1).max() == 0
    assert several.attributes["kind"].view(5, 4).float().std(dim=1).max() == 0
    places = several.images.float().mean(dim=(1, 2, 3))
    assert len(places.unique()) > 10
    capped = load_labelled(photograph_shards, LoadSettings(20, augment_below=10_000))
    assert len(capped.images) == 5 * 16


def test_too_large_images_and_missing_corpora_are_refused(photograph_shards, tmp_path):
    with refused(DataError, "shards/000000.tar", "00000000", "96 x 40", "max_pixels", 1000):
        load_labelled(photograph_shards, LoadSettings(20, max_pixels=1000))
    with refused(DataError, tmp_path, "manifest/dataset.json", "corpus", "gear-dist shard"):
        load_labelled(str(tmp_path), LoadSettings(20))
