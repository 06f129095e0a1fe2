"""Cached features of captions are the encoder's, bit for bit; other caches are refused."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gear_dist.config.text import TextEncoderConfig
from gear_dist.errors import ConfigError, DataError
from gear_dist.models.text_encoders import feature_cache, load_text_encoder
from gear_dist.models.text_encoders.base import TextEncoder
from gear_dist.models.text_encoders.feature_cache import (
    FORMAT,
    CacheRecord,
    FeatureCache,
    begin_cache,
    open_cache,
    plan_captions,
    write_parts,
)
from gear_dist.models.text_encoders.fingerprint import take_fingerprint
from gear_dist.models.text_encoders.words import count_words, write_vocabulary
from image_files import contents
from refusals import refused
from tiny_text_encoders import WIDTH, save_text_encoder

CPU = torch.device("cpu")
CAPTIONS = [
    "",
    "a red circle",
    "dots",
    *(f"number {i}, a photo of a cat" for i in range(9)),
    "dots",
]
SOURCE = {"corpora": ["abc"], "captions": "random"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name in ("qwen3", "t5"):
        made[name] = tmp_path_factory.mktemp(name)
        save_text_encoder(name, made[name])
    made["words"] = tmp_path_factory.mktemp("words") / "words.json"
    write_vocabulary(made["words"], count_words(CAPTIONS, 30))
    return made


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "PART_BYTES", 2000)


def load(folders: dict[str, Path], name: str = "qwen3", **changes) -> TextEncoder:
    changes = {"max_tokens": 24, "batching": "alone"} | changes
    config = TextEncoderConfig(name=name, path=str(folders[name]), **changes)
    width = 24 if name == "words" else WIDTH * len(config.layers)
    return load_text_encoder(config, width=width, device=CPU)


def record_of(encoder: TextEncoder, captions: list[str] = CAPTIONS, **changes) -> CacheRecord:
    plan = plan_captions(captions, encoder)
    record = CacheRecord(
        format=FORMAT,
        encoder=feature_cache.plain_record(dataclasses.asdict(encoder.config)),
        fingerprint=feature_cache.plain_record(take_fingerprint(encoder)._asdict()),
        dtype=str(encoder.dtype).removeprefix("torch."),
        source=SOURCE,
        num_captions=len(plan.captions),
        num_rows=plan.num_rows,
        part_captions=plan.part_captions,
    )
    return record._replace(**changes)


def build(folder: Path, encoder: TextEncoder, captions: list[str] = CAPTIONS) -> CacheRecord:
    record = record_of(encoder, captions)
    assert not begin_cache(folder, record)
    found: list[bool] = []
    unique = list(dict.fromkeys(captions))
    write_parts(folder, record, unique, encoder, lambda _, here: found.append(here))
    assert not any(found)
    return record


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("qwen3", {}),
        ("qwen3", {"padding": "right", "layers": (0, 2), "prompt": "chat"}),
        ("qwen3", {"padding": "left"}),
        ("t5", {}),
        ("words", {"batching": "buckets"}),
    ],
)
def test_features_are_the_encoders_bit_for_bit(folders, tmp_path, name, changes) -> None:
    encoder = load(folders, name, **changes)
    record = build(tmp_path / "cache", encoder)
    assert len(record.part_captions) > 1
    cache = open_cache(tmp_path / "cache", record._replace(num_captions=0, part_captions=()))
    for captions in (CAPTIONS, CAPTIONS[3:5], ["dots", "", "dots"]):
        expected, found = encoder(captions), cache.condition(captions, CPU)
        assert torch.equal(expected.features_MF, found.features_MF)
        assert torch.equal(expected.null_TF, found.null_TF)
        assert expected[1:3] + expected[4:] == found[1:3] + found[4:]
    assert record.num_rows == sum(encoder(list(dict.fromkeys(CAPTIONS))).lengths)
    size = sum(path.stat().st_size for path in (tmp_path / "cache").glob("part-*"))
    assert record.num_bytes < size < record.num_bytes + 1000 * len(record.part_captions)
    with refused(DataError, "data.caption_features", "never seen"):
        cache.condition(["never seen"], CPU)


def test_bf16_features_stay_bf16(folders, tmp_path) -> None:
    encoder = load(folders).to(torch.bfloat16)
    record = build(tmp_path / "cache", encoder)
    cache = FeatureCache(tmp_path / "cache", record)
    found = cache.condition(CAPTIONS, CPU).features_MF
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, encoder(CAPTIONS).features_MF)
    with refused(ConfigError, "data.caption_features", "bfloat16", "float32"):
        open_cache(tmp_path / "cache", record_of(load(folders)))


def test_others_are_refused_with_the_reason(folders, tmp_path) -> None:
    folder, encoder = tmp_path / "cache", load(folders)
    record = build(folder, encoder)
    open_cache(folder, record)
    for changes, needles in (
        ({"max_tokens": 23}, ("text_encoder.max_tokens", "24", "23")),
        ({"layers": (2,)}, ("text_encoder.layers",)),
        ({"batching": "buckets"}, ("text_encoder.batching",)),
    ):
        with refused(ConfigError, "data.caption_features", folder, *needles):
            open_cache(folder, record_of(load(folders, **changes)))
    source = {**SOURCE, "corpora": ["def"]}
    with refused(ConfigError, folder, "data.corpora", "abc", "def"):
        open_cache(folder, record._replace(source=source))
    with refused(ConfigError, folder, "data.corpora"):
        begin_cache(folder, record._replace(source=source))
    other = shutil.copytree(folders["qwen3"], tmp_path / "other")
    save_text_encoder("qwen3", other, seed=1)
    stranger = load({"qwen3": other})
    renamed = record_of(stranger)._replace(encoder=record.encoder)
    with refused(ConfigError, folder, "test prompts"):
        open_cache(folder, renamed)
    with refused(ConfigError, tmp_path / "nothing", "holds no cache", "gear-dist features"):
        open_cache(tmp_path / "nothing", record)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/photo.jpg").write_bytes(b"mine")
    with refused(ConfigError, tmp_path / "full", "not empty"):
        begin_cache(tmp_path / "full", record)
    with refused(ConfigError, tmp_path / "full/photo.jpg", "file"):
        begin_cache(tmp_path / "full/photo.jpg", record)


def test_a_damaged_cache_is_an_error(folders, tmp_path) -> None:
    folder, encoder = tmp_path / "cache", load(folders)
    record = build(folder, encoder)
    part = folder / "part-00001.safetensors"
    data = part.read_bytes()
    for wrong in (data[: len(data) // 2], b"", b"junk" * 100):
        part.write_bytes(wrong)
        with refused(DataError, part):
            open_cache(folder, record)
    (folder / "cache.json").write_text("{}")
    with refused(DataError, folder / "cache.json"):
        open_cache(folder, record)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {paths!r}
import test_feature_cache as case
case.feature_cache.PART_BYTES = 2000
encoder = case.load({folders!r}, "words")
record = case.record_of(encoder)
case.begin_cache(Path({folder!r}), record)
parts = []
def on_part(count, found):
    parts.append(count)
    if len(parts) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
case.write_parts(Path({folder!r}), record, list(dict.fromkeys(case.CAPTIONS)), encoder, on_part)
"""


def test_a_killed_build_goes_on_to_the_same_bytes(folders, tmp_path) -> None:
    encoder, folder = load(folders, "words"), tmp_path / "killed"
    record = build(tmp_path / "straight", encoder)
    places = {name: str(path) for name, path in folders.items()}
    script = KILLED.format(paths=sys.path, folders=places, folder=str(folder))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parent, env=environment, check=False
    )
    assert result.returncode == -signal.SIGKILL
    with refused(ConfigError, folder, "not complete", "gear-dist features"):
        open_cache(folder, record)
    (folder / "part-00000.safetensors").write_bytes(b"torn")  # as a disk may after a power cut
    found: list[bool] = []
    assert not begin_cache(folder, record)
    unique = list(dict.fromkeys(CAPTIONS))
    write_parts(folder, record, unique, encoder, lambda _, here: found.append(here))
    assert found == [False, True, *[False] * (len(record.part_captions) - 2)]
    assert contents(folder) == contents(tmp_path / "straight")
    assert begin_cache(folder, record), "complete"
