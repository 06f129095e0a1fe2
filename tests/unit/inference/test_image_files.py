"""tokenize and reconstruct on folders as people have them; classes as corpora name them."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import public_files as files
from gear_dist.cli.conditions import parse_classes
from gear_dist.cli.main import main
from gear_dist.errors import ConfigError
from gear_dist.interop.import_public import import_checkpoints


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.save(files.reference_state("tokenizer_vq"), folder / "vq.pt")
    settings = ["data.image_size=16"]
    import_checkpoints([str(folder / "vq.pt")], folder / "vq", overrides=settings)
    return str(folder / "vq")


@pytest.fixture
def images(tmp_path):
    """Five pictures, what macOS puts beside them, a hidden folder, and one that is no picture."""
    folder = tmp_path / "images"
    (folder / ".thumbnails").mkdir(parents=True)
    for i in range(5):
        Image.new("RGB", (20, 18), (i * 40, 9, 200)).save(folder / f"{i}.png")
    (folder / "._0.png").write_bytes(b"\0\5\x16\7" + bytes(90))
    Image.new("RGB", (20, 18)).save(folder / ".thumbnails" / "0.png")
    (folder / "__MACOSX").mkdir()
    Image.new("RGB", (20, 18)).save(folder / "__MACOSX" / "1.png")
    (folder / "2b.jpg").write_bytes(b"no picture")
    return folder


def test_hidden_and_bad_files_are_left_out(model, images, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["tokenize", model, "--images", str(images), "--batch", "2"]
    assert main([*words, "--out", str(out)]) == 0
    assert json.loads((out / "files.json").read_text()) == [f"{i}.png" for i in range(5)]
    assert list(json.loads((out / "left_out.json").read_text())) == ["2b.jpg"]
    assert "2b.jpg" in capsys.readouterr().err
    indices = np.load(out / "indices.npy")
    (images / "2b.jpg").unlink()
    assert main([*words, "--out", str(tmp_path / "clean")]) == 0
    assert np.array_equal(indices, np.load(tmp_path / "clean" / "indices.npy"))


def test_reconstruct_leaves_bad_files_out(model, images, tmp_path, capsys):
    out = tmp_path / "grid.png"
    words = ["reconstruct", model, "--images", str(images), "--out", str(out)]
    assert main(words) == 0
    assert "(5 images" in capsys.readouterr().out
    assert out.is_file()
    assert main([*words, "--max-bad-share", "0"]) == 3


def test_too_many_bad_files_are_an_error(model, images, tmp_path, capsys):
    for i in range(3):
        (images / f"{i}b.jpg").write_bytes(b"no picture either")
    words = ["tokenize", model, "--images", str(images), "--out", str(tmp_path / "out")]
    assert main(words) == 3
    assert "--max-bad-share" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*words, "--max-bad-share", "0.5"]) == 0


def test_not_one_good_file_is_an_error(model, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"no picture")
    words = ["tokenize", model, "--images", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    assert main([*words, "--max-bad-share", "1"]) == 3
    assert main(["tokenize", model, "--images", str(tmp_path / "out"), *words[4:]]) == 3


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("", [0, 1, 2, 3]),
        ("10,2", [0, 1]),
        ("3", [3]),
        ("tench, Tinca tinca", [2]),
        ('"tench, Tinca tinca", dog', [2, 3]),
        ('dog,"tench, Tinca tinca",10', [3, 2, 0]),
    ],
)
def test_names_win_over_indices_and_may_hold_commas(text, classes):
    names = ["10", "2", "tench, Tinca tinca", "dog"]
    assert parse_classes(text, 1000, names) == classes


@pytest.mark.parametrize("text", ["cat", "-1", "4", "1,,2", "9" * 5000, "\u0663"])
def test_classes_that_are_none(text):
    with pytest.raises(ConfigError) as error:
        parse_classes(text, 4, ["a", "b", "c", "d"])
    assert error.value.args[0].startswith("--classes ")


def test_help_needs_no_torch():
    program = (
        "import sys; from gear_dist.cli.main import build_parser; build_parser(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
