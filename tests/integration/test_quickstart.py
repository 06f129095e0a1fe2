"""`gear-dist quickstart` on a small folder of images, twice."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gear_cluster.demo import object_store
from gear_dist.cli.main import main

SMALL = [
    "run.launcher=local",
    "run.device=cpu",
    "data.image_size=16",
    "tokenizer.channel_multipliers=[1,1,1]",
    "tokenizer.codebook_size=32",
    "tokenizer.latent_channels=32",
    "generator.width=32",
    "generator.num_layers=2",
    "generator.num_heads=2",
    "generator.tap_layer=1",
    "alignment.soft_weight=0",
    "alignment.hard_weight=0",
    "stages.tokenizer.steps=3",
    "stages.joint.steps=3",
    "stages.generator.steps=0",
    "log.every_steps=1",
    "log.grid_every_steps=0",
    "optimizer.warmup_steps=1",
]


def draw_pictures(folder: Path) -> None:
    """Two classes; fewer images than demo.yaml's batch, so that it must be lowered."""
    random = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 4)):
        for name, low in (("bright", 128), ("dark", 0)):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(low, low + 128, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.jpg")


def test_captions_to_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `make train-text` runs, on a few images of the reader's own."""
    images = tmp_path / "pictures"
    draw_pictures(images)
    for picture in images.rglob("*.jpg"):
        picture.with_suffix(".txt").write_text(f"a {picture.parent.name} picture, {picture.stem}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gear_dist.cli.evaluate.CLASSIFIER_STEPS", 20)
    for name in [name for name in os.environ if name.startswith(("AWS_", "RAY_ADDRESS"))]:
        monkeypatch.delenv(name)
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "")
    config = Path(__file__).parents[2] / "configs" / "text" / "demo.yaml"
    command = ["quickstart", "--data", str(images), "--config", str(config), "--run-name", "text"]
    try:
        assert main([*command, *SMALL]) == 0, capsys.readouterr().err
    finally:
        object_store.stop(tmp_path / ".gear" / "object_store")
    out = capsys.readouterr().out
    assert "9 words" in out  # a, bright, dark, picture and five numbers
    assert "records no attributes" in out
    assert (tmp_path / "runs/text/samples.png").stat().st_size > 500
    assert "text_encoder" in (tmp_path / "runs/text/config.yaml").read_text()


def test_from_images_to_report_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "pictures"
    draw_pictures(images)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gear_dist.cli.evaluate.CLASSIFIER_STEPS", 20)
    for name in [name for name in os.environ if name.startswith(("AWS_", "RAY_ADDRESS"))]:
        monkeypatch.delenv(name)
    # What the command sets is undone with the rest.
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "")
    command = ["quickstart", "--data", str(images), "--run-name", "first", *SMALL]
    try:
        assert main(command) == 0, capsys.readouterr().err
        first = capsys.readouterr().out
        assert main(command) == 0
        second = capsys.readouterr().out
    finally:
        object_store.stop(tmp_path / ".gear" / "object_store")
    assert re.findall(r"^\[(\d)/6\]", first, re.MULTILINE) == list("123456")
    assert "engine.global_batch=10, because there are 10 images" in first
    assert "step 6/6" in first
    assert first.splitlines()[-2:] == [
        "sample grid: runs/first/samples.png",
        "report:      runs/first/report.html",
    ]
    assert (tmp_path / "runs/first/samples.png").stat().st_size > 500
    assert "<html" in (tmp_path / "runs/first/report.html").read_text()[:200]
    assert (tmp_path / "runs/first/evaluation.json").is_file()
    assert "runs/first is done (6 steps): not trained again" in second
    assert second.count("finished before, reused") == 2
    assert second.count("is up to date") == 2
    assert "step " not in second.replace("6 steps", "")
