"""Quickstart's decisions before anything is made."""

import os
from pathlib import Path

import pytest

from gear_cluster.demo import quickstart as room
from gear_cluster.demo.quickstart import QuickstartRequest, default_config, quickstart
from gear_dist.config.loading import load_config
from gear_dist.config.schema import RunConfig
from gear_dist.errors import ConfigError, DataError
from gear_dist.runs.run_folder import RunFolder
from refusals import refused


def request(data: Path | None = None, name: str = "", seed: int = 0, *overrides: str):
    return QuickstartRequest(data, [default_config()], name, seed, list(overrides))


def test_runs_of_other_seeds_and_corpora_have_other_names(tmp_path: Path) -> None:
    photos, others = tmp_path / "My Photos!", tmp_path / "a" / "My Photos!"
    assert request().run == "demo"
    assert request(seed=3).run == "demo-seed3"
    assert request(name="mine", seed=3).run == "mine"
    assert request(photos).corpus.startswith("my-photos-")
    assert request(photos).corpus == request(photos).corpus
    assert request(photos).corpus != request(others).corpus
    assert request(photos, "", 1).run == f"demo-{request(photos).corpus}-seed1"
    assert request(photos).train_address == f"s3://gear/{request(photos).corpus}/train"


def test_default_configuration_is_found_from_anywhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_config().is_file()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "demo.yaml").write_text("{}")
    assert default_config() == Path("configs/demo.yaml")


def test_bad_requests_make_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with refused(DataError, tmp_path / "nowhere", "no such", "images"):
        quickstart(request(tmp_path / "nowhere"))
    with refused(ConfigError, "engine.globl_batch", "engine.global_batch"):
        quickstart(request(None, "", 0, "engine.globl_batch=3"))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    with refused(ConfigError, "RAY_ADDRESS", "quickstart", "ray job submit"):
        quickstart(request())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "workers"),
    [
        (["engine.global_batch=32"], 2),
        (["engine.global_batch=33"], 1),
        (["engine.global_batch=36", "run.workers=8"], 6),
        (["engine.global_batch=32", "run.workers=8", "engine.accumulation=8"], 4),
        (["engine.global_batch=32", "run.launcher=local"], 1),
    ],
)
def test_workers_that_the_batch_divides_by(overrides: list[str], workers: int) -> None:
    config = load_config(None, ["run.device=cpu", *overrides])
    assert room._choose_workers(config.run, config.engine) == workers


def test_results_older_than_the_weights_are_made_again(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", RunConfig())
    weights, result = folder.weights / "tokenizer.safetensors", folder.path / "samples.png"
    weights.write_bytes(b"w")
    assert not room._is_up_to_date(result, folder)
    result.write_bytes(b"r")
    os.utime(weights, (100, 100))
    os.utime(result, (101, 101))
    assert room._is_up_to_date(result, folder)
    os.utime(weights, (102, 102))
    assert not room._is_up_to_date(result, folder)
