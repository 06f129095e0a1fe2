"""A text-to-image pair: one seed means one image, whoever is asked for it."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import gear_dist
from gear_dist.cli.main import main
from gear_dist.config.models import SamplingConfig
from gear_dist.errors import ConfigError
from gear_dist.serving.routes import build_app
from gear_dist.serving.service import Service
from gear_dist.serving.settings import ServerSettings
from refusals import refused
from tiny_pair import make_tiny_pair
from tiny_text_encoders import WIDTH, save_text_encoder

SIDE = 16
PROMPTS = ("a cat", "", "-dash", "two\nlines", 'it\'s "quoted" $HOME', "猫 🐈")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    save_text_encoder("t5", folder / "encoder")
    make_tiny_pair(
        folder / "model",
        "generator.condition=text",
        f"generator.text_width={WIDTH}",
        "text_encoder.name=t5",
        f"text_encoder.path={folder / 'encoder'}",
    )
    return folder / "model"


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[TestClient]:
    settings = ServerSettings(str(model), SamplingConfig(guidance=1.5), device="cpu", threads=1)
    with TestClient(build_app(Service(settings))) as client:
        yield client


@pytest.fixture(scope="module")
def pair(model: Path) -> gear_dist.Pair:
    return gear_dist.load(model, device="cpu")


def test_a_recorded_seed_asks_for_its_image_in_any_batch(pair: gear_dist.Pair) -> None:
    images = pair.generate(prompts=["a cat", "a dog", "a cat"], seed=3, guidance=1.5)
    assert images.seeds[0] == 3
    prompts = ("a cat", "a dog", "a cat")
    for tensor, prompt, seed in zip(images.tensor, prompts, images.seeds, strict=True):
        alone = pair.generate(prompts=[prompt], seed=seed, guidance=1.5)
        assert (alone.tensor[0] == tensor).all()
    given = pair.generate(prompts=["a cat", "a dog", "a cat"], seeds=images.seeds, guidance=1.5)
    assert (given.tensor == images.tensor).all()
    assert given.seeds == images.seeds


@pytest.mark.parametrize("prompt", PROMPTS)
def test_server_command_and_python_give_the_same(
    client: TestClient,
    pair: gear_dist.Pair,
    prompt: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = {"prompt": prompt, "n": 2, "seed": 3}
    found = client.post("/v1/images/generations", json=body).json()["data"]
    wanted = pair.generate(prompts=[prompt] * 2, seed=3, guidance=1.5)
    assert [item["seed"] for item in found] == list(wanted.seeds)
    monkeypatch.setattr("gear_dist.report.image_grid._MIN_TILE", SIDE)
    monkeypatch.chdir(tmp_path)
    for item, tensor in zip(found, wanted.tensor, strict=True):
        words = shlex.split(item["command"])
        assert main([*words[1:], "--columns", "1"]) == 0
        again = np.asarray(Image.open(f"sample-{item['seed']}.png").convert("RGB"))
        shown = tensor.permute(1, 2, 0).numpy()
        windows = np.lib.stride_tricks.sliding_window_view(again, shown.shape)
        assert (windows == shown).all(axis=(-1, -2, -3)).any()


def test_a_prompt_that_is_no_text(pair: gear_dist.Pair, model: Path) -> None:
    """Bytes of an argument that are no UTF-8 arrive as half pairs."""
    for prompt in ("\ud800", "\udcff\udcfe bad"):
        with refused(ConfigError, "prompt", "UTF-8"):
            pair.generate(prompts=[prompt])
        assert main(["sample", str(model), "--prompt", prompt]) == 2
