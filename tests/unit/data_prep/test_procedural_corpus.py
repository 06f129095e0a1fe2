"""The sample corpus: the same bytes always, classes that no colour and no pixel gives away."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gear_data_prep.demo import procedural_corpus
from gear_data_prep.demo.procedural_corpus import (
    CLASSES,
    SampleCorpusSettings,
    draw_sample,
    make_sample_corpus,
)
from gear_dist.cli.main import main
from gear_dist.errors import ConfigError, DataError, StorageError
from refusals import refused

SMALL = SampleCorpusSettings(size=32, train=48, validation=16)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_same_bytes_for_any_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(procedural_corpus, "_CHUNK", 7)
    assert make_sample_corpus(tmp_path / "one", SMALL, workers=1)
    assert make_sample_corpus(tmp_path / "two", SMALL, workers=2)
    one = contents(tmp_path / "one")
    assert one == contents(tmp_path / "two")
    assert len(one) == 3 * 64 + 1
    make_sample_corpus(tmp_path / "other", SMALL._replace(seed=1), workers=1)
    key = "train/circle_striped/000003.jpg"
    assert one[key] != contents(tmp_path / "other")[key]


def test_tree(tmp_path: Path) -> None:
    make_sample_corpus(tmp_path / "c", SMALL._replace(size=64), workers=1)
    for split, each in (("train", 3), ("val", 1)):
        folders = sorted((tmp_path / "c" / split).iterdir())
        assert [folder.name for folder in folders] == list(CLASSES)
        assert all(len(list(folder.glob("*.jpg"))) == each for folder in folders)
    image = Image.open(tmp_path / "c/val/square_ringed/000009.jpg")
    assert (image.size, image.format, image.mode) == ((64, 64), "JPEG", "RGB")
    assert image.layer[0][1:3] == (1, 1), "chroma is not subsampled"
    caption = (tmp_path / "c/val/square_ringed/000009.txt").read_text()
    assert "ringed square" in caption


def test_attributes_are_independent_of_class() -> None:
    samples = [draw_sample(SMALL, "train", index) for index in range(3200)]
    values = {name: np.array([s.attributes[name] for s in samples]) for name in samples[0][2]}
    assert {name: len(set(v)) for name, v in values.items()} == {
        "shape": 4,
        "texture": 4,
        "hue": 8,
        "background": 8,
        "position": 9,
        "size": 3,
        "tone": 2,
    }
    label = np.arange(3200) % 16
    for name in ("hue", "background", "position", "size", "tone"):
        table = np.zeros((16, values[name].max() + 1))
        np.add.at(table, (label, values[name]), 1)
        expected = table.sum(0) / 16
        chi_square = ((table - expected) ** 2 / expected).sum()
        freedom = 15 * (table.shape[1] - 1)
        assert chi_square < freedom + 4 * np.sqrt(2 * freedom), name


def linear_accuracy(
    train: np.ndarray, train_labels: np.ndarray, held: np.ndarray, held_labels: np.ndarray
) -> float:
    """Best held-out accuracy of ridge regression to one-hot labels over several penalties."""
    mean, scale = train.mean(0), train.std(0) + 1e-6
    x = np.c_[(train - mean) / scale, np.ones(len(train))].astype(np.float32)
    y = np.c_[(held - mean) / scale, np.ones(len(held))].astype(np.float32)
    gram, target = x.T @ x, x.T @ np.eye(16, dtype=np.float32)[train_labels]
    accuracies = []
    for penalty in (1e2, 1e3, 1e4):
        weights = np.linalg.solve(gram + penalty * np.eye(len(gram), dtype=np.float32), target)
        accuracies.append(float(((y @ weights).argmax(1) == held_labels).mean()))
    return max(accuracies)


def test_no_linear_classifier_succeeds() -> None:
    settings = SampleCorpusSettings()
    counts = {"train": 4000, "val": 1600}
    pixels = {
        split: np.stack([draw_sample(settings, split, i).pixels for i in range(count)])
        for split, count in counts.items()
    }
    labels = {split: np.arange(count) % 16 for split, count in counts.items()}

    def accuracy(features: dict[str, np.ndarray]) -> float:
        return linear_accuracy(features["train"], labels["train"], features["val"], labels["val"])

    assert accuracy({s: p.mean((1, 2)) for s, p in pixels.items()}) <= 0.10
    assert accuracy({s: p.reshape(len(p), -1) for s, p in pixels.items()}) <= 0.35


def test_finished_corpus_is_reused(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    assert make_sample_corpus(folder, SMALL, workers=1)
    image = folder / "train/circle_solid/000002.jpg"
    before = image.stat().st_mtime_ns
    assert not make_sample_corpus(folder, SMALL, workers=1)
    assert image.stat().st_mtime_ns == before
    other = SMALL._replace(train=32)
    with refused(DataError, folder, "settings", "--overwrite"):
        make_sample_corpus(folder, other, workers=1)
    assert make_sample_corpus(folder, other, workers=1, overwrite=True)
    assert len(list(folder.glob("train/*/*.jpg"))) == 32


def test_interrupted_corpus_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_sample_corpus(tmp_path / "whole", SMALL, workers=1)
    real = procedural_corpus.encode_jpeg
    calls = iter(range(20))

    def stops(pixels: np.ndarray) -> bytes:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return real(pixels)

    monkeypatch.setattr(procedural_corpus, "encode_jpeg", stops)
    with pytest.raises(KeyboardInterrupt):
        make_sample_corpus(tmp_path / "c", SMALL, workers=1)
    monkeypatch.undo()
    assert not (tmp_path / "c" / procedural_corpus.MARKER).exists()
    assert make_sample_corpus(tmp_path / "c", SMALL, workers=1)
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with refused(DataError, tmp_path, "files"):
        make_sample_corpus(tmp_path, SMALL, workers=1, overwrite=True)
    assert (tmp_path / "holiday.jpg").exists()
    with refused(ConfigError, "--size 8", 16):
        make_sample_corpus(tmp_path / "c", SMALL._replace(size=8))
    with refused(StorageError, tmp_path / "holiday.jpg/c", "written"):
        make_sample_corpus(tmp_path / "holiday.jpg" / "c", SMALL)


def test_a_file_in_the_folders_place_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert main(["sample-corpus", str(tmp_path / "file")]) == 3
    assert "name a folder" in capsys.readouterr().err
