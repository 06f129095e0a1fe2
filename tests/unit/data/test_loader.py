"""The streaming loader: exact positions, equal ranks, the same pixels everywhere."""

import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gear_dist.config.data import DataConfig
from gear_dist.data import batches as batches_module
from gear_dist.data import fetching
from gear_dist.data import plan as plan_module
from gear_dist.data.crops import take_crop
from gear_dist.data.loader import build_loader
from gear_dist.data.manifest import load_manifest, load_samples
from gear_dist.data.shard_reader import read_shard
from gear_dist.errors import ConfigError, DataError
from gear_dist.storage.open import open_storage
from loader_cases import (
    all_keys,
    encode,
    make_loader,
    numbered_samples,
    same,
    take,
    write_corpus,
)
from refusals import refused
from sample_shards import SampleShards


@pytest.fixture
def train(sample_shards: SampleShards) -> str:
    return f"{sample_shards.file}/train"


@pytest.fixture
def in_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the corpus were too large to be kept in memory."""
    monkeypatch.setattr(plan_module, "KEEP_BYTES", 0)


def test_batches(train: str) -> None:
    batches = take(make_loader(train), 12)
    table = load_samples(open_storage(train)).to_pydict()
    label_of = dict(zip(table["key"], table["class_index"], strict=True))
    for images, labels, keys, captions, _ in batches:
        assert (images.shape, images.dtype) == ((16, 3, 32, 32), torch.uint8)
        assert images.is_contiguous()
        assert labels.dtype == torch.int64
        assert labels.tolist() == [label_of[key] for key in keys]
        assert images.float().std() > 20
        assert captions == ("",) * 16
    keys = [key for batch in batches for key in batch.keys]
    assert sorted(keys) == sorted(label_of), "an epoch visits every sample once"
    assert keys != sorted(keys)


def test_pixels_are_those_of_the_source(train: str) -> None:
    storage = open_storage(train)
    source = {
        key: np.asarray(Image.open(io.BytesIO(shard.image(row))))
        for info in load_manifest(storage).shards
        for shard in [read_shard(storage, info)]
        for row, key in enumerate(shard.keys)
    }
    plain, mirrored = 0, 0
    for batch in take(make_loader(train), 12):
        for image, key in zip(batch.images.permute(0, 2, 3, 1).numpy(), batch.keys, strict=True):
            plain += np.array_equal(image, source[key])
            mirrored += np.array_equal(image, source[key][:, ::-1])
    assert plain + mirrored == 192
    assert 60 < mirrored < 132
    for batch in take(make_loader(train, flip=0.0), 2):
        assert np.array_equal(batch.images[3].permute(1, 2, 0).numpy(), source[batch.keys[3]])


def test_order_depends_on_seed_and_epoch(train: str) -> None:
    two_epochs = take(make_loader(train), 24)
    other_seed = take(make_loader(train, seed=1), 12)
    orders = [
        tuple(key for batch in part for key in batch.keys)
        for part in (two_epochs[:12], two_epochs[12:], other_seed)
    ]
    assert len(set(orders)) == 3
    assert len({tuple(sorted(order)) for order in orders}) == 1
    assert same(two_epochs, take(make_loader(train), 24))


def test_folder_and_s3_yield_the_same(sample_shards: SampleShards, train: str) -> None:
    config = DataConfig(image_size=32, shuffle_buffer_shards=2)
    options = {"batch_size": 16, "rank": 0, "world_size": 1, "seed": 0, "num_classes": 16}
    remote = build_loader(config, f"{sample_shards.s3}/train", **options)
    assert same(take(remote, 14), take(make_loader(train), 14))


@pytest.mark.parametrize("option", [{"decode_threads": 3}, {"prefetch_batches": 1}])
def test_threads_do_not_change_what_is_yielded(train: str, option: dict[str, int]) -> None:
    assert same(take(make_loader(train), 14), take(make_loader(train, **option), 14))


@pytest.mark.usefixtures("in_lanes")
def test_a_corpus_in_lanes(train: str) -> None:
    loader = make_loader(train, shuffle_buffer_shards=4)
    assert loader.describe()["lanes"] == [4]
    batches = take(loader, 24)
    for epoch in (batches[:12], batches[12:]):
        assert len(set(all_keys(epoch))) == 192
    straight = take(make_loader(train, shuffle_buffer_shards=4, prefetch_batches=1), 24)
    assert same(batches, straight)


def joined(parts: list[list[batches_module.Batch]], number: int, accumulation: int = 1):
    """Keys and images of a global batch, over ranks and accumulated batches."""
    low, high = number * accumulation, (number + 1) * accumulation
    own = [batch for part in parts for batch in part[low:high]]
    return all_keys(own), torch.cat([batch.images for batch in own])


@pytest.mark.parametrize("lanes", [0, 1, 6, 30])
@pytest.mark.parametrize(("world_size", "accumulation"), [(3, 1), (5, 1), (3, 2), (1, 5)])
def test_ranks_share_the_global_batches(
    train: str, lanes: int, world_size: int, accumulation: int
) -> None:
    whole = take(make_loader(train, batch_size=30, lanes=lanes), 13)
    share = {"world_size": world_size, "accumulation": accumulation, "lanes": lanes}
    size = 30 // world_size // accumulation
    parts = [
        take(make_loader(train, batch_size=size, rank=rank, **share), 13 * accumulation)
        for rank in range(world_size)
    ]
    for number, batch in enumerate(whole):
        keys, images = joined(parts, number, accumulation)
        assert keys == list(batch.keys)
        assert torch.equal(images, batch.images)
    assert len(set(all_keys(whole[:6]))) == 180, "the tail short of a global batch is dropped"


@pytest.mark.parametrize("done", [0, 1, 5, 11, 12, 13])
@pytest.mark.parametrize("lanes", [0, 4])
def test_resume(train: str, done: int, lanes: int) -> None:
    options = {"batch_size": 8, "rank": 1, "world_size": 2, "prefetch_batches": 7, "lanes": lanes}
    straight = take(make_loader(train, **options), 20)
    first = make_loader(train, **options)
    batches = iter(first)
    for _ in range(done):
        next(batches)
    state = json.loads(json.dumps(first.state_dict()))
    assert (state["epoch"], state["step"]) == (done // 12, done)
    first.close()
    assert first.state_dict() == state, "reading ahead does not move the position"
    second = make_loader(train, **options)
    second.load_state_dict(state)
    assert same(take(second, 20 - done), straight[done:])


@pytest.mark.usefixtures("in_lanes")
@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (2, 1), (3, 2), (12, 1)])
def test_resume_with_another_world_size(train: str, world_size: int, accumulation: int) -> None:
    """Started on four ranks; the rest of the global sequence stays, each sample once."""
    share = {"batch_size": 6, "world_size": 4}
    straight = [take(make_loader(train, rank=rank, **share), 16) for rank in range(4)]
    first = make_loader(train, rank=3, **share)
    batches = iter(first)
    for _ in range(3):
        next(batches)
    state = first.state_dict()
    first.close()
    parts = []
    for rank in range(world_size):
        size = 24 // world_size // accumulation
        loader = make_loader(
            train, batch_size=size, rank=rank, world_size=world_size, accumulation=accumulation
        )
        loader.load_state_dict(state)
        parts.append(take(loader, 13 * accumulation))
    seen = [key for part in straight for batch in part[:3] for key in batch.keys]
    for number in range(13):
        keys, images = joined(parts, number, accumulation)
        expected, pixels = joined(straight, 3 + number)
        assert keys == expected
        assert torch.equal(images, pixels)
        seen += keys if number < 5 else []
    assert len(seen) == len(set(seen)) == 192


def test_resume_in_the_same_loader(train: str) -> None:
    loader = make_loader(train)
    batches = iter(loader)
    state = loader.state_dict()
    first = [next(batches) for _ in range(5)]
    loader.load_state_dict({**state, "step": 2})
    with refused(RuntimeError, "iterate"):
        next(batches)
    assert same(take(loader, 3), first[2:])


def test_a_position_inside_a_global_batch(train: str) -> None:
    share = {"batch_size": 4, "world_size": 2, "accumulation": 2}
    straight = take(make_loader(train, **share), 10)
    loader = make_loader(train, **share)
    take(loader, 3)
    state = loader.state_dict()
    assert (state["step"], state["micro"]) == (1, 1)
    again = make_loader(train, **share)
    again.load_state_dict(state)
    assert same(take(again, 7), straight[3:])
    with refused(ConfigError, "checkpoint", "run.workers=2", "engine.accumulation=2"):
        make_loader(train, batch_size=8, world_size=2).load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "setting", "earlier"),
    [
        ({"batch_size": 8}, "engine.global_batch=8", 16),
        ({"seed": 1}, "run.seed=1", 0),
        ({"tail": "repeat"}, "data.tail=repeat", "drop"),
        ({"shuffle_buffer_shards": 3}, "data.shuffle_buffer_shards=3", 2),
        ({"lanes": 4}, "data.lanes=4", 1),
    ],
)
def test_positions_of_other_settings_are_refused(train: str, options, setting, earlier) -> None:
    state = make_loader(train).state_dict()
    with refused(ConfigError, setting, earlier):
        make_loader(train, **options).load_state_dict(state)


def test_positions_of_another_corpus_are_refused(sample_shards: SampleShards, train: str) -> None:
    state = make_loader(train).state_dict()
    other = make_loader(f"{sample_shards.file}/validation")
    with refused(DataError, f"{sample_shards.file}/validation", "data.train", "data.mixture"):
        other.load_state_dict(state)
    with refused(DataError, "checkpoint", "version"):
        other.load_state_dict({"epoch": 0, "batch": 3})


@pytest.mark.usefixtures("in_lanes")
def test_resume_does_not_read_what_is_past(train: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def counting(storage, info, data):
        read.append(info.shard)
        return fetching_parse(storage, info, data)

    fetching_parse = fetching.parse_shard
    monkeypatch.setattr(fetching, "parse_shard", counting)
    loader = make_loader(train, shuffle_buffer_shards=1, prefetch_batches=1, lanes=1)
    loader.load_state_dict({**loader.state_dict(), "step": 11})
    next(iter(loader))
    loader.close()
    assert len(read) <= 4, "the last window's shard, and one or two windows ahead"


def test_the_tail_may_be_filled_up(train: str) -> None:
    loader = make_loader(train, batch_size=50, tail="repeat")
    facts = loader.describe()["epochs"][0]
    assert facts == {"samples": 192, "steps": 4, "dropped": 0, "repeated": 8}
    keys = all_keys(take(loader, 4))
    assert (len(keys), len(set(keys))) == (200, 192)
    small = make_loader(train, batch_size=500, tail="repeat")
    (batch,) = take(small, 1)
    assert len(set(batch.keys)) == 192


def test_lanes_that_do_not_fit(train: str) -> None:
    with refused(ConfigError, "data.lanes=5", "engine.global_batch=16"):
        make_loader(train, lanes=5)


def test_validation_pass(sample_shards: SampleShards, train: str) -> None:
    address = f"{sample_shards.file}/validation"
    loader = make_loader(address, batch_size=10)
    batches = list(loader.validation_batches())
    assert [len(batch.keys) for batch in batches] == [10, 10, 10, 2]
    keys = [key for batch in batches for key in batch.keys]
    assert keys == [f"{number:08d}" for number in range(32)]
    assert same(batches, list(loader.validation_batches(0)))
    assert [len(batch.keys) for batch in loader.validation_batches(12)] == [10, 2]
    parts = [
        [
            key
            for b in make_loader(train, batch_size=10, rank=rank, world_size=2).validation_batches(
                90
            )
            for key in b.keys
        ]
        for rank in range(2)
    ]
    assert [len(part) for part in parts] == [50, 40]
    assert sorted(parts[0] + parts[1]) == [f"{number:08d}" for number in range(90)]
    assert loader.state_dict()["step"] == 0


def test_crops(tmp_path: Path) -> None:
    """Pixels hold their own coordinates, so a crop shows where it came from."""
    height, width = 40, 64
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    pixels = np.stack([rows, columns, rows], -1)
    address = write_corpus(tmp_path, [[{"png": encode(pixels), "cls": b"0"}] * 60])
    loader = make_loader(address, image_size=40, batch_size=60, num_classes=2)
    (batch,) = take(loader, 1)
    lefts = batch.images[:, 1].amin((1, 2)).tolist()
    assert torch.equal(batch.images[:, 0], torch.arange(40)[None, :, None].expand(60, 40, 40))
    assert set(lefts) <= set(range(25))
    assert len(set(lefts)) >= 15
    flipped = (batch.images[:, 1, 0, 0] > batch.images[:, 1, 0, 1]).sum().item()
    assert 15 < flipped < 45
    (centre,) = loader.validation_batches()
    assert (centre.images[:, 1, 0, 0] == 12).all()
    assert (centre.images[:, 1, 0, -1] == 51).all()


def test_classes_out_of_range(train: str, tmp_path: Path) -> None:
    with refused(DataError, train, "16 classes", "generator.num_classes=10"):
        make_loader(train, num_classes=10)
    samples = numbered_samples(3)
    samples[1]["cls"] = b"5"
    address = write_corpus(tmp_path, [samples])
    with refused(DataError, "shards/000000.tar", "00000001", "class 5", "generator.num_classes=5"):
        take(make_loader(address, batch_size=3, num_classes=5), 1)
    del samples[1]["cls"]
    address = write_corpus(tmp_path, [samples])
    with refused(DataError, address, "--policy no-class=skip", "data.captions=first"):
        make_loader(address, batch_size=3, num_classes=5)


def test_too_few_images(sample_shards: SampleShards, tmp_path: Path) -> None:
    loader = make_loader(f"{sample_shards.file}/validation", batch_size=11, world_size=3)
    with refused(DataError, "32 images", 33, "engine.global_batch", "data.tail=repeat"):
        iter(loader)
    assert sum(len(batch.keys) for batch in loader.validation_batches()) == 11
    empty = write_corpus(tmp_path, [[]])
    with refused(DataError, empty, "empty"):
        make_loader(empty)


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("gear-")]


def test_the_thread_ends(train: str) -> None:
    loader = make_loader(train)
    batches = iter(loader)
    next(batches)
    assert loader_threads()
    loader.close()
    loader.close()
    assert not loader_threads()
    batches = iter(loader)
    next(batches)
    del batches, loader
    assert not loader_threads(), "dropping the iterator is enough"


def test_a_process_may_end_while_it_reads(train: str) -> None:
    program = (
        "import sys; from loader_cases import make_loader;"
        "loader = make_loader(sys.argv[1], prefetch_batches=4096, image_size=24);"
        "batches = iter(loader); next(batches)"
    )
    paths = os.pathsep.join(sys.path)
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", program, train],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_errors_come_after_the_good_batches(train: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(40))

    def failing(*arguments) -> np.ndarray:
        if next(calls, None) is None:
            raise MemoryError("planted")
        return take_crop(*arguments)

    monkeypatch.setattr(batches_module, "take_crop", failing)
    loader = make_loader(train)
    batches = iter(loader)
    next(batches)
    next(batches)
    with pytest.raises(MemoryError, match="planted"):
        next(batches)
    assert not loader_threads()
    assert loader.state_dict()["step"] == 2


def test_speed_from_memory(train: str) -> None:
    """At least 4,000 images of 32 x 32 pixels a CPU second (measured: 9,000 to 14,000)."""
    loader = make_loader(train, batch_size=64)
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    start = time.process_time()
    for _ in range(60):
        next(batches)
    seconds = time.process_time() - start
    loader.close()
    assert 60 * 64 / seconds > 4000


def test_batches_for_a_gpu_lie_in_pinned_memory(
    train: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pinned memory needs CUDA, so what is asked of torch is looked at."""
    asked: list[bool] = []
    empty = torch.empty

    def record(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        asked.append(pin_memory)
        return empty(*args, **kwargs)

    expected = take(make_loader(train), 3)
    monkeypatch.setattr(torch, "empty", record)
    assert same(take(make_loader(train, pin_memory=True), 3), expected)
    assert asked
    assert all(asked)
    asked.clear()
    take(make_loader(train), 1)
    assert not any(asked)


@pytest.mark.parametrize(
    ("cores", "workers", "threads"),
    [(2, "1", 2), (16, "1", 15), (96, "8", 11), (8, "8", 2), (128, "1", 16)],
)
def test_decode_threads_are_a_share_of_the_cores(
    cores: int, workers: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_module, "num_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", workers)
    assert batches_module.choose_decode_threads() == threads
