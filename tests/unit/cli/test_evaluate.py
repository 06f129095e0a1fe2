"""`gear-dist evaluate` on a run folder whose networks are untrained."""

import dataclasses
import json
from pathlib import Path

import pytest

from gear_dist.cli.main import main
from gear_dist.config.loading import load_config
from gear_dist.config.schema import RunConfig
from gear_dist.inference.weights import save_run_weights
from gear_dist.models.generator import build_generator
from gear_dist.models.tokenizers import build_tokenizer
from gear_dist.runs.run_folder import RunFolder

TINY = [
    "data.image_size=32",
    "tokenizer.codebook_size=16",
    "tokenizer.channels=32",
    "tokenizer.channel_multipliers=[1,1,1,1]",
    "tokenizer.num_res_blocks=1",
    "tokenizer.latent_channels=32",
    "generator.width=16",
    "generator.num_layers=1",
    "generator.num_heads=2",
    "generator.num_classes=16",
    "generator.tap_layer=1",
    "sampling.guidance=1.5",
]


def write_run(folder: Path, config: RunConfig, *networks: str) -> RunFolder:
    run = RunFolder.create(folder, config)
    tokenizer = build_tokenizer(
        config.tokenizer,
        soft_temperature=config.alignment.soft_temperature,
        kernels=config.engine.kernels,
    )
    generator = build_generator(config)
    states = {
        "tokenizer": tokenizer.state_dict(),
        "generator": {f"generator.{key}": value for key, value in generator.state_dict().items()},
    }
    save_run_weights(run.weights, {name: states[name] for name in networks}, {"step": 1})
    return run


@pytest.fixture(scope="module")
def config(sample_shards) -> RunConfig:
    corpus = sample_shards.file + "/validation"
    return load_config(None, [*TINY, f"data.train={corpus}", f"data.validation={corpus}"])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("classifiers")


def command(run: RunFolder, cache: Path) -> list[str]:
    few = ["--images-per-class", "1", "--seeds", "4", "5", "--classifier-steps", "2"]
    return ["evaluate", str(run.path), "--cache", str(cache), *few]


def test_evaluation_is_written_and_printed(config, cache, tmp_path, capsys):
    run = write_run(tmp_path / "run", config, "tokenizer", "generator")
    assert main(command(run, cache)) == 0
    text = capsys.readouterr().out
    assert "guidance 1.5: asked class" in text
    assert "warning: classifier unreliable: 32 training images only" in text
    found = json.loads(run.evaluation_path.read_text())
    assert found["guided"]["guidance"] == 1.5
    assert found["unguided"]["guidance"] == 1
    assert len(found["guided"]["accuracy"]["values"]) == 2
    assert found["num_generated"] == 16
    assert found["reconstruction"]["num_images"] == 32
    assert 0 < found["reconstruction"]["psnr_db"] < 30
    first = found["guided"]
    assert main([*command(run, cache), "--guidance", "3"]) == 0
    again = json.loads(run.evaluation_path.read_text())
    assert again["guided"]["guidance"] == 3
    # The same seeds give the same images.
    assert again["unguided"]["accuracy"] == found["unguided"]["accuracy"]
    frechet = found["unguided"]["frechet"]["values"]
    assert again["unguided"]["frechet"]["values"] == pytest.approx(frechet, rel=1e-5)
    assert first != again["guided"]


def test_run_without_a_generator_is_measured_on_reconstructions(config, cache, tmp_path, capsys):
    run = write_run(tmp_path / "run", config, "tokenizer")
    assert main(command(run, cache)) == 0
    found = json.loads(run.evaluation_path.read_text())
    assert found["guided"] is None
    assert found["reconstruction"]["psnr_db"] > 0
    assert any("no generator" in text for text in found["warnings"])


def test_generator_without_a_null_class_is_measured_unguided(config, cache, tmp_path):
    generator = dataclasses.replace(config.generator, class_dropout=0.0)
    run = write_run(
        tmp_path / "run", dataclasses.replace(config, generator=generator), "tokenizer", "generator"
    )
    assert main(command(run, cache)) == 0
    found = json.loads(run.evaluation_path.read_text())
    assert found["guided"] == found["unguided"]
    assert found["guided"]["guidance"] == 1


def test_wrong_runs_and_options_give_one_line(config, cache, tmp_path, capsys):
    run = write_run(tmp_path / "run", config, "tokenizer")
    assert main([*command(run, cache), "--threads", "0"]) == 2
    assert main(["evaluate", str(tmp_path / "absent")]) in (2, 3)
    generator = dataclasses.replace(config.generator, num_classes=3)
    few = write_run(
        tmp_path / "few", dataclasses.replace(config, generator=generator), "tokenizer", "generator"
    )
    capsys.readouterr()
    assert main(command(few, cache)) == 3
    error = capsys.readouterr().err
    assert "generator.num_classes=3" in error
    assert error.count("\n") == 1
    assert not few.evaluation_path.exists()
