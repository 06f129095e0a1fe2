"""Trained pairs in Python, and through a hub over the wire."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import gear_dist
from gear_dist.cli.main import main
from gear_dist.errors import ConfigError, DataError
from gear_dist.report.image_grid import _MIN_TILE
from gear_dist.runs.classes import write_class_names
from hub_server import TOKEN, Hub, hub_server
from refusals import refused
from tiny_pair import make_tiny_pair


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api") / "model"
    make_tiny_pair(folder)
    return folder


@pytest.fixture(scope="module")
def pair(model: Path) -> gear_dist.Pair:
    return gear_dist.load(model, device="cpu")


def test_importing_the_package_brings_no_torch() -> None:
    code = "import sys, gear_dist; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="loud"):
        _ = gear_dist.loud


def test_generated_images_and_the_seeds_that_repeat_them(pair: gear_dist.Pair) -> None:
    images = pair.generate(classes=[0, 3, 3], seed=5, guidance=1.5, top_k=8)
    assert (images.tensor.shape, images.tensor.dtype) == ((3, 3, 16, 16), torch.uint8)
    assert images.seeds[0] == 5
    assert not torch.equal(images.tensor[1], images.tensor[2])
    alone = pair.generate(classes=[3], seed=images.seeds[2], guidance=1.5, top_k=8)
    assert torch.equal(alone.tensor[0], images.tensor[2])
    given = pair.generate(classes=[0, 3, 3], seeds=images.seeds, guidance=1.5, top_k=8)
    assert torch.equal(given.tensor, images.tensor)
    pictures = images.pil()
    assert np.array_equal(np.asarray(pictures[1]), images.tensor[1].permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("arguments", "needles"),
    [
        ({"classes": [0], "seed": 1.5}, ("seed=1.5",)),
        ({"classes": [0], "seed": [1]}, ("seed=[1]",)),
        ({"classes": [0], "seeds": ["1"]}, ("seeds='1'",)),
        ({"classes": 3}, ("classes=[3]",)),
        ({"classes": "apple"}, ("classes=['apple']",)),
        ({"classes": [0.5]}, ("classes=0.5",)),
        ({"classes": [0], "guidance": "2"}, ("guidance='2'", "number")),
        ({"classes": [0], "guidance": float("inf")}, ("guidance=inf",)),
        ({"classes": [0], "guidance": 1e308}, ("guidance=1e+308", "10000.0")),
        ({"classes": [0], "top_k": 1.5}, ("top_k=1.5", "whole")),
        ({"classes": [0], "fixed_batches": 1}, ("fixed_batches=1", "True")),
        ({"classes": [0], "dtype": "fp16"}, ("dtype='fp16'", "bf16")),
    ],
)
def test_arguments_of_another_kind_are_told_by_name(
    pair: gear_dist.Pair, arguments: dict[str, Any], needles: tuple[str, ...]
) -> None:
    with refused(ConfigError, *needles):
        pair.generate(**arguments)


def test_numbers_of_numpy_and_torch_are_numbers(pair: gear_dist.Pair) -> None:
    wanted = pair.generate(classes=[1, 2], seed=3, guidance=1.5, top_k=4).tensor
    found = pair.generate(
        classes=torch.tensor([1, 2]), seed=np.int64(3), guidance=np.float32(1.5), top_k=np.int8(4)
    )
    assert torch.equal(found.tensor, wanted)
    assert torch.equal(pair.encode(found), pair.encode(wanted))
    with refused(ConfigError, "whole numbers"):
        pair.decode(torch.zeros(1, 16))
    with refused(ConfigError, "whole numbers"):
        pair.decode([[0] * 16])  # type: ignore[arg-type]


def test_a_number_is_an_index_also_where_a_class_is_called_so(tmp_path: Path) -> None:
    make_tiny_pair(tmp_path / "model")
    write_class_names(tmp_path / "model", ["0", "3", "2", "1"])
    pair = gear_dist.load(tmp_path / "model", device="cpu")
    by_index = pair.generate(classes=[1], seed=4).tensor
    assert torch.equal(by_index, pair.generate(classes=["3"], seed=4).tensor)
    assert not torch.equal(by_index, pair.generate(classes=["1"], seed=4).tensor)


def test_the_command_gives_the_same_image(
    model: Path, pair: gear_dist.Pair, tmp_path: Path
) -> None:
    words = ["--classes", "2", "--count", "1", "--seed", "77", "--guidance", "1.5"]
    out = tmp_path / "one.png"
    assert main(["sample", str(model), *words, "--columns", "1", "--out", str(out)]) == 0
    found = np.asarray(Image.open(out).convert("RGB"))
    [wanted] = pair.generate(classes=[2], seed=77, guidance=1.5).pil()
    enlarged = np.asarray(wanted.resize([_MIN_TILE] * 2, Image.Resampling.NEAREST))
    windows = np.lib.stride_tricks.sliding_window_view(found, enlarged.shape)[:, :, 0]
    assert any(np.array_equal(part, enlarged) for row in windows for part in row)


def test_images_in_every_form_have_the_same_codes(pair: gear_dist.Pair, tmp_path: Path) -> None:
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    picture.save(tmp_path / "picture.png")
    forms = [image, image.permute(1, 2, 0).numpy(), picture, tmp_path / "picture.png"]
    together = pair.encode(forms)
    assert (together.shape, together.dtype) == ((4, 16), torch.int64)
    assert all(torch.equal(row, together[0]) for row in together)
    assert torch.equal(pair.encode(image), together[:1])
    assert torch.equal(pair.encode(image[None]), together[:1])
    assert torch.equal(pair.decode(together).tensor, pair.reconstruct(forms).tensor)


def test_large_pictures_are_resized_and_transparent_ones_composited(pair: gear_dist.Pair) -> None:
    clear = Image.new("RGBA", (40, 64), (0, 0, 0, 0))
    white = torch.full((3, 16, 16), 255, dtype=torch.uint8)
    assert torch.equal(pair.encode(clear), pair.encode(white))


def test_what_does_not_fit_is_told(pair: gear_dist.Pair, model: Path, tmp_path: Path) -> None:
    with refused(ConfigError, "classes", 9, "0 .. 3"):
        pair.generate(classes=[9])
    with refused(ConfigError, "classes", "prompts"):
        pair.generate()
    with refused(ConfigError, "prompts", "classes"):
        pair.generate(prompts=["a dog"])
    with refused(ConfigError, "topk", "top_k"):
        pair.generate(classes=[1], topk=3)
    with refused(ConfigError, "sampling.temperature", -1):
        pair.generate(classes=[1], temperature=-1)
    with refused(ConfigError, "2 seeds", "1 images"):
        pair.generate(classes=[1], seeds=[1, 2])
    with refused(ConfigError, 2**64, "64 bits"):
        pair.generate(classes=[1], seed=2**64)
    with refused(ConfigError, "(1, 9)", "(B, 16)"):
        pair.decode(torch.zeros(1, 9, dtype=torch.int64))
    with refused(ConfigError, "0 to 31"):
        pair.decode(torch.full((1, 16), 32))
    with refused(ConfigError, "(3, 8, 8)", "(3, 16, 16)"):
        pair.encode(torch.zeros(3, 8, 8, dtype=torch.uint8))
    with refused(ConfigError, "at least one"):
        pair.reconstruct([])
    with refused(DataError, tmp_path / "nowhere"):
        gear_dist.load(tmp_path / "nowhere")
    (model.parent / "empty").mkdir()
    with refused(DataError, model.parent / "empty", "gear-dist import"):
        gear_dist.load(model.parent / "empty")


def test_a_saved_pair_is_the_same_pair(pair: gear_dist.Pair, tmp_path: Path) -> None:
    pair.save_pretrained(tmp_path / "saved")
    again = gear_dist.Pair.from_pretrained(tmp_path / "saved", device="cpu")
    first, second = (p.generate(classes=[1, 2], seed=3) for p in (pair, again))
    assert torch.equal(first.tensor, second.tensor)
    with refused(ConfigError, tmp_path / "saved", "not empty"):
        pair.save_pretrained(tmp_path / "saved")


def test_names_of_classes_go_with_an_exported_pair(pair: gear_dist.Pair, tmp_path: Path) -> None:
    pair.save_pretrained(tmp_path / "named")
    write_class_names(tmp_path / "named", ["bee", "cat", "dog", "elk"])
    named = gear_dist.load(tmp_path / "named", device="cpu")
    named.save_pretrained(tmp_path / "again")
    again = gear_dist.load(tmp_path / "again", device="cpu")
    assert again.classes == ("bee", "cat", "dog", "elk")
    wanted = pair.generate(classes=[2], seed=1).tensor
    assert torch.equal(again.generate(classes=["dog"], seed=1).tensor, wanted)
    with refused(ConfigError, "classes", "dig", "dog"):
        again.generate(classes=["dig"])
    for damaged in ("{", '{"a": 1}', "[1]"):
        (tmp_path / "again/classes.json").write_text(damaged)
        with refused(DataError, tmp_path / "again/classes.json"):
            gear_dist.load(tmp_path / "again", device="cpu")


# -- a hub, over the wire --------------------------------------------------------------------------


@pytest.fixture
def hub() -> Hub:
    with hub_server() as found:
        yield found


def run(hub: Hub, home: Path, code: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    """A program of its own: huggingface_hub reads its settings at import."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    settings = {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_TOKEN": token,
    }
    code = f"import gear_dist\n{code}"
    words = [sys.executable, "-c", code]
    return subprocess.run(words, env=kept | settings, cwd=home, capture_output=True, text=True)


def test_a_pair_goes_to_a_hub_and_comes_back(
    hub: Hub, model: Path, pair: gear_dist.Pair, tmp_path: Path
) -> None:
    push = f"print(gear_dist.load({str(model)!r}).push_to_hub('somebody/pair', private=True))"
    done = run(hub, tmp_path, push)
    assert done.returncode == 0, done.stderr
    commit, files = hub.files("somebody/pair")
    assert done.stdout.strip().endswith(commit)
    assert files.keys() == {
        "README.md",
        "config.json",
        "generator.safetensors",
        "tokenizer.safetensors",
    }
    assert "somebody/pair" in hub.private
    sample = (
        "import torch\n"
        "images = gear_dist.load('somebody/pair', device='cpu').generate(classes=[1, 2], seed=3)\n"
        "torch.save(images.tensor, 'images.pt')"
    )
    done = run(hub, tmp_path, sample)
    assert done.returncode == 0, done.stderr
    wanted = pair.generate(classes=[1, 2], seed=3).tensor
    assert torch.equal(torch.load(tmp_path / "images.pt", weights_only=True), wanted)
    asked = len(hub.requests)
    again = run(hub, tmp_path, "import os; os.environ['HF_HUB_OFFLINE'] = '1'\n" + sample)
    assert again.returncode == 0, again.stderr
    assert len(hub.requests) == asked, "offline nothing is asked"


def test_what_the_hub_refuses_is_told_without_the_token(
    hub: Hub, model: Path, tmp_path: Path
) -> None:
    catch = "try:\n {}\nexcept gear_dist.errors.DataError as error:\n print(error)"
    code = "import gear_dist.errors\n" + catch
    wrong = "hf_wrong-token-of-somebody"
    done = run(hub, tmp_path, code.format("gear_dist.load('somebody/absent')"), wrong)
    assert "somebody/absent: unavailable from the hub" in done.stdout, done.stderr
    push = f"gear_dist.load({str(model)!r}).push_to_hub('somebody/new')"
    done = run(hub, tmp_path, code.format(push), wrong)
    assert "HF_TOKEN" in done.stdout, done.stderr
    assert wrong not in done.stdout + done.stderr
    assert "somebody/new" not in hub.repositories


def test_a_folder_wins_over_a_repository_of_its_name(hub: Hub, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "somebody" / "pair"
    folder.parent.mkdir()
    folder.symlink_to(model)
    done = run(
        hub, tmp_path, "print(gear_dist.load('somebody/pair', device='cpu').config.num_tokens)"
    )
    assert done.stdout.strip() == "16", done.stderr
    assert not hub.requests
