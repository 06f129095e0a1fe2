"""Corpora by address: stock webdataset tars, mixtures, captions, the local shard cache."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from gear_cluster.demo.object_store import StoreEndpoint
from gear_dist.config.data import DataConfig
from gear_dist.config.models import GeneratorConfig
from gear_dist.data import corpus as corpus_module
from gear_dist.data import fetching
from gear_dist.data import plan as plan_module
from gear_dist.data.corpus import open_corpus
from gear_dist.data.labelled import LoadSettings, load_labelled
from gear_dist.data.loader import build_loader
from gear_dist.data.manifest import ShardInfo
from gear_dist.data.shard_cache import ShardCache
from gear_dist.errors import ConfigError, DataError
from gear_dist.models.generator import ClassCondition
from gear_dist.storage.open import open_storage
from gear_dist.training.steps import MicroBatch, kept_condition
from loader_cases import (
    all_keys,
    encode,
    flat_image,
    make_loader,
    numbered_samples,
    same,
    take,
    write_corpus,
)
from refusals import refused

# -- stock webdataset -----------------------------------------------------------------------


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def stock(tmp_path: Path) -> Path:
    """Three shards by webdataset's own writer: class, text, and GPIC's JSON captions."""
    folder = tmp_path / "stock" / "sub"
    folder.mkdir(parents=True)
    with webdataset.ShardWriter(f"{folder}/s-%03d.tar", maxcount=10, verbose=0) as writer:
        for number in range(28):
            writer.write(
                {
                    "__key__": f"k{number:03d}",
                    "png": flat_image(number),
                    "cls": str(number % 5).encode(),
                    "json": json.dumps({"caption": f"picture {number}"}).encode(),
                }
            )
    return folder.parent


def test_stock_shards(stock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = make_loader(str(stock), batch_size=14, num_classes=5, captions="first")
    manifest = loader.corpora[0].manifest
    assert (manifest.info.num_samples, len(manifest.shards)) == (28, 3)
    assert manifest.info.classes == ("0", "1", "2", "3", "4")
    batches = take(loader, 2)
    assert sorted(all_keys(batches)) == [f"k{number:03d}" for number in range(28)]
    for batch in batches:
        numbers = [int(key[1:]) for key in batch.keys]
        assert (batch.images[:, 0, 0, 0].numpy() == numbers).all()
        assert batch.labels.tolist() == [number % 5 for number in numbers]
        assert batch.captions == tuple(f"picture {number}" for number in numbers)
    state = loader.state_dict()
    monkeypatch.setattr(corpus_module, "_count", None)  # counted once, then never again
    again = make_loader(str(stock), batch_size=14, num_classes=5)
    again.load_state_dict(state)
    data = load_labelled(str(stock), LoadSettings(32))
    assert (len(data.images), data.num_classes) == (28, 5)


def test_stock_shards_on_s3_and_changed_ones(stock: Path, object_store: StoreEndpoint) -> None:
    remote = open_storage("s3://gear-tests-stock/x")
    for path in stock.rglob("*.tar"):
        remote.upload(path.name, path)
    options = {"batch_size": 28, "rank": 0, "world_size": 1, "seed": 0, "num_classes": 5}
    (batch,) = take(build_loader(DataConfig(image_size=32), remote.address, **options), 1)
    assert len(set(batch.keys)) == 28
    data = bytearray(remote.read("s-000.tar"))
    data[data.index(b"picture") + 3] ^= 1
    remote.write("s-000.tar", bytes(data))
    with refused(DataError, f"{remote.address}/s-000.tar", "checksum", "~/.cache/gear-dist"):
        take(build_loader(DataConfig(image_size=32), remote.address, **options), 1)


def test_stock_shards_that_are_cut(stock: Path) -> None:
    path = next(stock.rglob("*.tar"))
    path.write_bytes(path.read_bytes()[:-1024][:9000])
    with refused(DataError, path, "byte 9000"):
        open_corpus(str(stock))


def test_our_shards_are_read_by_stock_webdataset(tmp_path: Path) -> None:
    address = write_corpus(tmp_path / "c", [numbered_samples(5), numbered_samples(5, first=5)])
    urls = [str(path) for path in sorted(Path(open_storage(address).root).rglob("*.tar"))]
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in found] == [f"{number:08d}" for number in range(10)]
    assert found[7]["cls"] == b"1"


# -- captions -------------------------------------------------------------------------------


def captioned(tmp_path: Path, *, classes: bool) -> str:
    samples = []
    for number in range(20):
        parts = {"png": flat_image(number)}
        parts["json"] = json.dumps({"captions": [f"{number} {word}" for word in "abc"]}).encode()
        parts |= {"cls": b"1"} if classes else {}
        samples.append(parts)
    return write_corpus(tmp_path / "captions", [samples], classes=2 if classes else 0)


@pytest.mark.parametrize("classes", [True, False])
def test_choice_of_captions(tmp_path: Path, classes: bool) -> None:
    address = captioned(tmp_path, classes=classes)
    options = {"batch_size": 20, "num_classes": 2}
    (first,) = take(make_loader(address, captions="first", **options), 1)
    assert first.captions == tuple(f"{int(key)} a" for key in first.keys)
    assert set(first.labels.tolist()) == ({1} if classes else {-1})
    epochs = take(make_loader(address, captions="random", **options), 6)
    chosen = Counter(caption.split()[1] for batch in epochs for caption in batch.captions)
    assert set(chosen) == set("abc")
    assert min(chosen.values()) > 20
    by_key = [dict(zip(b.keys, b.captions, strict=True)) for b in epochs]
    assert by_key[0] != by_key[1], "drawn again every epoch"
    halves = [
        take(
            make_loader(
                address, captions="random", batch_size=10, rank=r, world_size=2, num_classes=2
            ),
            6,
        )
        for r in range(2)
    ]
    for number, batch in enumerate(epochs):
        assert batch.captions == halves[0][number].captions + halves[1][number].captions


def test_types_of_captions_are_chosen_and_weighted(tmp_path: Path) -> None:
    samples = []
    for number in range(24):
        node = {
            "captions": ["t1", "s1", "s2", "l1"],
            "caption_types": ["tag", *["short"] * 2, "long"],
        }
        samples.append({"png": flat_image(number), "json": json.dumps(node).encode()})
    address = write_corpus(tmp_path / "types", [samples], classes=0)
    options = {"batch_size": 24, "num_classes": None}

    def counts(**more: object) -> Counter:
        batches = take(make_loader(address, captions="random", **options, **more), 40)
        return Counter(caption for batch in batches for caption in batch.captions)

    equal = counts(caption_dropout=0.0, caption_types=["short", "long"])
    assert set(equal) == {"s1", "s2", "l1"}
    assert all(250 < count < 390 for count in equal.values())
    weighted = counts(
        caption_dropout=0.0, caption_types=["short", "long"], caption_weights=[1.0, 3.0]
    )
    assert 660 < weighted["l1"] < 780
    assert 80 < weighted["s1"] < 160
    (first,) = take(make_loader(address, captions="first", caption_types=["long"], **options), 1)
    assert set(first.captions) <= {"l1", ""}
    with refused(DataError, address, "data.caption_types", "data.max_bad_share"):
        take(make_loader(address, captions="first", caption_types=["medium"], **options), 1)
    for wrong in ({"caption_weights": [1.0]}, {"caption_types": ["a", "a"]}):
        (name,) = wrong
        with refused(ConfigError, f"data.{name}={next(iter(wrong.values()))}"):
            make_loader(address, captions="random", **options, **wrong)


def test_gpics_one_caption_has_a_type(tmp_path: Path) -> None:
    samples = [
        {"png": flat_image(i), "json": json.dumps({"caption": kind, "caption_type": kind}).encode()}
        for i, kind in enumerate(["short", "tag", "short"])
    ]
    address = write_corpus(tmp_path / "gpic", [samples], classes=0)
    loader = make_loader(
        address,
        batch_size=3,
        num_classes=None,
        captions="random",
        caption_types=["short"],
        caption_dropout=0.0,
        max_bad_share=0.9,
    )
    assert take(loader, 1)[0].captions == ("short",) * 3, "others are replaced"


def test_centre_crops(tmp_path: Path) -> None:
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, 16:48] = 255
    address = write_corpus(tmp_path / "wide", [[{"png": encode(pixels), "cls": b"0"}] * 4])
    for crop, whole in (("centre", True), ("random", False)):
        batches = take(make_loader(address, batch_size=4, crop=crop), 8)
        assert all((batch.images == 255).all() for batch in batches) == whole


@pytest.mark.parametrize("flip_sides", [False, True])
def test_captions_that_say_left_or_right_are_not_flipped(tmp_path: Path, flip_sides: bool) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, 16:] = 255
    words = ["left of it", "the Right-hand one", "leftmost", "bright", "aleft", ""]
    samples = [{"png": encode(pixels), "txt": f"{word} x".encode(), "cls": b"0"} for word in words]
    address = write_corpus(tmp_path / "sides", [samples])
    loader = make_loader(
        address,
        batch_size=6,
        flip=1.0,
        captions="first",
        caption_dropout=0.5,
        flip_sides=flip_sides,
    )
    for batch in take(loader, 4):
        flipped = (batch.images[:, 0, 0, 0] == 255).tolist()
        rows = [int(key) for key in batch.keys]
        assert flipped == [flip_sides or row > 2 for row in rows], "also where it is dropped"


def test_dropped_captions_and_labels_are_drawn_by_seed_epoch_and_sample(tmp_path: Path) -> None:
    address = captioned(tmp_path, classes=True)
    options = {"num_classes": 2, "captions": "first", "caption_dropout": 0.3}
    whole = take(make_loader(address, batch_size=20, **options), 40)
    dropped = [
        {key for key, caption in zip(batch.keys, batch.captions, strict=True) if not caption}
        for batch in whole
    ]
    assert 0.25 < sum(map(len, dropped)) / 800 < 0.35
    assert dropped[0] != dropped[1], "drawn again every epoch"
    for batch in whole:
        below = batch.cfg_dropout_rand < 0.3
        assert below.tolist() == [not caption for caption in batch.captions]
        kept = kept_condition(
            MicroBatch(batch.images, ClassCondition(batch.labels), [], below.tolist()),
            GeneratorConfig(num_classes=2, class_dropout=0.3),
        )
        assert kept.labels_B.tolist() == [2 if drop else 1 for drop in below.tolist()]
    draws = torch.cat([batch.cfg_dropout_rand for batch in whole])
    assert 0.47 < draws.mean() < 0.53
    assert draws.max() < 1
    halves = [
        take(make_loader(address, batch_size=10, rank=rank, world_size=2, **options), 40)
        for rank in range(2)
    ]
    for number, batch in enumerate(whole):
        parts = [half[number] for half in halves]
        assert torch.equal(
            batch.cfg_dropout_rand, torch.cat([part.cfg_dropout_rand for part in parts])
        )
    (validation,) = make_loader(address, batch_size=20, **options).validation_batches()
    assert all(validation.captions)
    assert (validation.cfg_dropout_rand == 1).all()


def test_a_missing_caption_is_a_bad_sample(tmp_path: Path) -> None:
    samples = numbered_samples(4)
    for number in (0, 1, 3):
        samples[number]["txt"] = b"grey"
    address = write_corpus(tmp_path / "c", [samples])
    options = {"batch_size": 4, "num_classes": 2, "captions": "first", "caption_dropout": 0.0}
    with pytest.warns(UserWarning, match="no caption"):
        loader = make_loader(address, max_bad_share=0.5, **options)
    with pytest.warns(UserWarning, match="no caption"):
        (batch,) = take(loader, 1)
    assert batch.captions == ("grey",) * 4
    assert "00000002" not in batch.keys
    with refused(DataError, address, "data.captions=first", "data.max_bad_share"):
        make_loader(address, max_bad_share=0.0, **options)


# -- mixtures -------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    """Sixty samples in six shards, and twenty in two; greys tell which."""
    big = write_corpus(tmp_path / "a", [numbered_samples(10, first=10 * n) for n in range(6)])
    small = [
        [{"png": flat_image(200 + 10 * n + m), "cls": b"1"} for m in range(10)] for n in range(2)
    ]
    return big, write_corpus(tmp_path / "b", small)


def greys(batch) -> np.ndarray:
    return batch.images[:, 0, 0, 0].numpy()


@pytest.mark.parametrize("keep_bytes", [0, 1 << 28])
def test_weights(two: tuple[str, str], keep_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "KEEP_BYTES", keep_bytes)
    options = {"num_classes": 2, "mixture_weights": (3.0, 1.0)}
    loader = make_loader(*two, batch_size=16, **options)
    assert loader.describe()["shares"] == [0.75, 0.25]
    whole = take(loader, 10)
    for batch in whole:
        assert (greys(batch) >= 200).sum() == 4
    small = [grey for batch in whole[:5] for grey in greys(batch) if grey >= 200]
    assert len(set(small)) == 20, "an epoch of the small one shows each sample once"
    half = [
        take(make_loader(*two, batch_size=8, rank=r, world_size=2, **options), 10) for r in range(2)
    ]
    for number, batch in enumerate(whole):
        if keep_bytes:
            assert list(batch.keys) == all_keys([half[0][number], half[1][number]])
    resumed = make_loader(*two, batch_size=16, **options)
    resumed.load_state_dict({**loader.state_dict(), "step": 7})
    assert same(take(resumed, 3), whole[7:])


def test_joined_without_weights(two: tuple[str, str]) -> None:
    (batch,) = take(make_loader(*two, batch_size=80, num_classes=2), 1)
    assert len(set(greys(batch).tolist())) == 80


def test_mixtures_that_do_not_fit(two: tuple[str, str], tmp_path: Path) -> None:
    with refused(ConfigError, "data.mixture_weights", "3 entries", "2 corpora"):
        make_loader(*two, num_classes=2, mixture_weights=(1.0, 1.0, 1.0))
    with refused(ConfigError, "engine.global_batch=1", "2 corpora"):
        make_loader(*two, num_classes=2, batch_size=1, mixture_weights=(1.0, 1.0))
    other = write_corpus(tmp_path / "other", [numbered_samples(5)], classes=4)
    with refused(DataError, two[0], other, "classes"):
        make_loader(two[0], other, num_classes=4)
    with refused(ConfigError, "data.mixture_weights=[1.0, 0.0]", "> 0"):
        DataConfig(mixture_weights=(1.0, 0.0))


# -- the local cache ------------------------------------------------------------------------


def test_shards_come_from_the_cache(
    two: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"batch_size": 12, "num_classes": 2, "cache_folder": str(tmp_path / "kept")}
    expected = take(make_loader(two[0], **options), 5)
    kept = sorted((tmp_path / "kept").glob("*.tar"))
    assert len(kept) == 6
    reads = []
    real = fetching.ShardFetcher._read
    monkeypatch.setattr(
        fetching.ShardFetcher,
        "_read",
        lambda self, storage, info: reads.append(info.name) or real(self, storage, info),
    )
    kept[0].write_bytes(kept[0].read_bytes()[:-1] + b"x")
    assert same(take(make_loader(two[0], **options), 5), expected)
    assert len(reads) == 1, "the spoiled one alone is fetched again"
    assert same(take(make_loader(two[0], **options), 5), expected)
    assert len(reads) == 1


def test_the_cache_keeps_its_limit(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 250)
    infos = [ShardInfo(n, f"{n}.tar", 1, 100, f"{n:016x}") for n in range(4)]
    for age, info in enumerate(infos[:2]):
        cache.write(info, b"x" * 100)
        os.utime(tmp_path / f"{info.crc64nvme}-100.tar", (age, age))
    assert cache.read(infos[0]) == b"x" * 100, "which makes it the one used last"
    cache.write(infos[2], b"y" * 100)
    assert [cache.read(info) is not None for info in infos] == [True, False, True, False]
    cache.write(infos[3]._replace(bytes=300), b"z" * 300)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.tar")) == 200
    (tmp_path / f".part.{os.uname().nodename.replace('.', '-')}.0a.gear-part").touch()
    ShardCache(tmp_path, 250)
    assert not list(tmp_path.glob("*.gear-part"))


def test_the_cache_is_shared_by_processes(tmp_path: Path) -> None:
    """Four processes write and read ten shards through a cache that holds five."""
    program = (
        "import sys; from pathlib import Path; from gear_dist.data.shard_cache import ShardCache;"
        "from gear_dist.data.manifest import ShardInfo; cache = ShardCache(Path(sys.argv[1]), 5000)"
        "\nfor turn in range(300):"
        "\n    n = turn * int(sys.argv[2]) % 10"
        "\n    info = ShardInfo(n, 'x', 1, 1000, f'{n:016x}')"
        "\n    data = cache.read(info)"
        "\n    assert data is None or data == bytes([n]) * 1000, data"
        "\n    cache.write(info, bytes([n]) * 1000) if data is None else None"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(step)]) for step in (1, 3, 7, 9)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert 1 <= len(list(tmp_path.glob("*.tar"))) <= 5 + 3


def test_processes_that_come_later_lock_the_same_file(tmp_path: Path) -> None:
    inodes = []
    for _ in range(2):
        ShardCache(tmp_path, 5000)
        inodes.append((tmp_path / ".lock").stat().st_ino)
    assert inodes[0] == inodes[1]


def test_a_full_disk_is_no_end(
    two: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gear_dist.errors import StorageError

    def full(self, key: str, data: bytes) -> None:
        raise StorageError("planted: the disk is full")

    options = {"batch_size": 12, "num_classes": 2}
    loader = make_loader(two[0], cache_folder=str(tmp_path / "kept"), **options)
    monkeypatch.setattr(ShardCache, "write", full)
    with pytest.warns(UserWarning, match="data.cache_folder: planted"):
        found = take(loader, 5)
    assert same(found, take(make_loader(two[0], **options), 5))
