"""Whole runs that train a generator on captions, by real worker processes."""

import dataclasses
from pathlib import Path

import pytest
import torch
import training_case as case
from safetensors import safe_open
from text_training_case import refusals
from worker_processes import run_workers

from gear_dist.cli.main import main
from gear_dist.config.loading import config_yaml
from gear_dist.config.schema import RunConfig
from gear_dist.errors import ConfigError
from gear_dist.inference.text_weights import read_encoder_fingerprint
from gear_dist.models.text_encoders.words import count_words, write_vocabulary
from gear_dist.runs.run_folder import RunFolder
from gear_dist.training.conditions import load_conditions
from refusals import refused
from sample_shards import SampleShards
from tiny_text_encoders import save_text_encoder

STAGES = ("stages.tokenizer.steps=2", "stages.joint.steps=2", "stages.generator.steps=2")


@pytest.fixture
def vocabulary(tmp_path: Path, sample_shards: SampleShards) -> Path:
    """Of the training captions."""
    path = tmp_path / "words.json"
    captions = [file.read_text() for file in sample_shards.tree.glob("train/*/*.txt")]
    write_vocabulary(path, count_words(captions, 30))
    return path


@pytest.fixture
def config(
    tmp_path: Path, sample_shards: SampleShards, teacher: Path, vocabulary: Path
) -> RunConfig:
    return case.tiny_config(
        tmp_path,
        sample_shards.file,
        teacher,
        *STAGES,
        "generator.condition=text",
        "generator.text_width=32",
        "text_encoder.name=words",
        f"text_encoder.path={vocabulary}",
        "text_encoder.max_tokens=24",
        "data.captions=random",
    )


def test_stopped_and_resumed_equals_straight_bit_for_bit(config: RunConfig) -> None:
    """Two ranks, every ZeRO stage and both masks, stopped in the joint stage and in the last."""
    variants: list[tuple[str, ...]] = [
        ("engine.zero_stage=0", "alignment.estimator=straight-through"),
        ("engine.zero_stage=1", "engine.precision=bf16", "engine.accumulation=2"),
        ("engine.zero_stage=2", "generator.text_mask=prefix"),
        ("engine.zero_stage=3", "generator.activation_checkpointing=true"),
    ]
    found = run_workers(2, case.straight_and_resumed_each, 2, config, variants, [3, 5])
    for by_rank in found:
        assert dict(zip(variants, by_rank, strict=True)) == {v: [] for v in variants}


def test_ranks_and_micro_batches_change_nothing(config: RunConfig) -> None:
    """The generator stage without dropout: the same images, captions and dropped captions."""
    first = case.with_overrides(config, "stages.joint.steps=0", "stages.generator.steps=0")
    base = case.with_overrides(
        config,
        f"stages.init_from={first.run.folder}",
        "stages.tokenizer.steps=0",
        "stages.joint.steps=0",
        "stages.generator.steps=4",
        "generator.residual_dropout=0.0",
        "generator.feed_forward_dropout=0.0",
        "generator.token_dropout=0.0",
        "generator.class_dropout=0.5",
        "optimizer.name=sgd",
        "optimizer.generator_lr=0.1",
    )
    run_workers(1, case.train_each, 1, [first])
    states = []
    for workers, parts in ((1, 1), (1, 4), (2, 1)):
        changed = case.with_overrides(
            case.named(base, f"{workers}-{parts}"), f"engine.accumulation={parts}"
        )
        run_workers(workers, case.train_until, workers, changed, None)
        states.append(safe_open(changed.run.folder / "weights" / "generator.safetensors", "pt"))
    whole, *others = states
    for name in whole.keys():  # noqa: SIM118
        for other in others:
            assert torch.allclose(
                whole.get_tensor(name), other.get_tensor(name), rtol=1e-5, atol=1e-6
            ), name


def test_weights_and_checkpoints_know_their_text_encoder(config: RunConfig) -> None:
    """And a run with another one is refused, whether it resumes or begins from them."""
    saving = case.with_overrides(config, "checkpoint.every_steps=2")
    [result] = run_workers(1, case.train_until, 1, saving, 4)
    assert (result.state, result.step) == ("interrupted", 4)
    metrics = RunFolder(saving.run.folder).read_metrics()[-1]
    assert {"cross_entropy", "align_soft", "align_hard"} <= set(metrics)
    stored = read_encoder_fingerprint(saving.run.folder / "weights" / "generator.safetensors")
    assert stored["width"] == 32
    begun = case.with_overrides(
        case.named(config, "begun"),
        f"stages.init_from={saving.run.folder}",
        "stages.tokenizer.steps=0",
        "stages.joint.steps=0",
    )
    words = [f"word{i}" for i in range(30)]
    [found] = run_workers(1, refusals, 1, [saving, begun], words)
    assert [kind for kind, _ in found] == ["ConfigError"] * 2
    assert all(message.startswith("text_encoder: ") for _, message in found)
    assert ["step-00000004" in message for _, message in found] == [True, False]
    assert ["generator.safetensors" in message for _, message in found] == [False, True]
    [[(kind, message)]] = run_workers(1, refusals, 1, [begun], words[:5])
    assert kind == "ConfigError"
    assert "generator.text_width=8" in message


def test_a_run_is_sampled_from_prompts(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = case.with_overrides(config, "stages.joint.steps=1", "stages.generator.steps=1")
    run_workers(1, case.train_until, 1, short, None)
    run = short.run.folder
    assert list(run.glob("**/samples*.png")), "grids have captions below"
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a large red striped circle\n\na small blue solid square\n")
    out = tmp_path / "grid.png"
    assert main(["sample", str(run), "--prompts", str(prompts), "--out", str(out)]) == 0
    first = out.read_bytes()
    again = ["sample", str(run), "--prompt", "a large red striped circle", "--out", str(out)]
    assert main([*again, "--prompt", "a small blue solid square"]) == 0
    assert out.read_bytes() == first
    for words, needle in (
        (["--classes", "0"], "--classes 0"),
        ([], "--prompt TEXT"),
        (["--prompts", str(tmp_path / "no.txt")], "no.txt"),
    ):
        capsys.readouterr()
        assert main(["sample", str(run), *words]) in (2, 3)
        assert needle in capsys.readouterr().err
    exported = tmp_path / "exported"
    assert main(["export", str(run), "--out", str(exported)]) == 0
    found = read_encoder_fingerprint(exported / "generator.safetensors")
    assert found == read_encoder_fingerprint(run / "weights" / "generator.safetensors")
    assert main(["sample", str(exported), "--prompts", str(prompts), "--out", str(out)]) == 0
    assert out.read_bytes() == first
    write_vocabulary(Path(config.text_encoder.path), count_words([f"w{i}" for i in range(30)], 30))
    assert main(["sample", str(run), "--prompts", str(prompts)]) == 2
    assert "text_encoder" in capsys.readouterr().err


def test_captions_must_be_there(config: RunConfig) -> None:
    off = dataclasses.replace(config, data=dataclasses.replace(config.data, captions="off"))
    with refused(ConfigError, "data.captions=off", "generator.condition=text"):
        off.check_trainable()


def losses_of(config: RunConfig) -> list[dict]:
    """Of each step, without what is measured by a clock."""
    records = RunFolder(config.run.folder).read_metrics()
    names = ("step", "cross_entropy", "align_soft", "align_hard", "generator_gradient_norm")
    return [{name: record.get(name) for name in names} for record in records]


@pytest.mark.parametrize("name", ["words", "qwen3"])
def test_cached_features_give_the_same_losses_bit_for_bit(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Two ranks, by way of the command; and a run may begin with the encoder and go on without."""
    if name == "qwen3":
        save_text_encoder("qwen3", tmp_path / "encoder")
        config = case.with_overrides(
            config,
            f"text_encoder.name={name}",
            f"text_encoder.path={tmp_path / 'encoder'}",
            "text_encoder.batching=alone",
            "generator.text_width=16",
        )
    cache = f"data.caption_features={tmp_path / 'features'}"
    cached = case.with_overrides(case.named(config, "cached"), cache)
    settings = tmp_path / "run.yaml"
    settings.write_text(config_yaml(cached))
    assert main(["features", str(settings), "--dry-run"]) == 0
    assert not (tmp_path / "features").exists(), "the size is told, and nothing written"
    assert main(["features", str(settings)]) == 0
    told = capsys.readouterr().out
    assert "captions" in told
    assert "float32" in told
    assert main(["features", str(settings)]) == 0
    assert "complete already" in capsys.readouterr().out
    run_workers(2, case.train_each, 2, [config, cached])
    expected = losses_of(config)
    assert [record["step"] for record in expected] == [1, 2, 3, 4, 5, 6]
    assert any(record["cross_entropy"] for record in expected)
    assert losses_of(cached) == expected
    shorter = case.with_overrides(cached, "data.caption_types=[]", "text_encoder.max_tokens=20")
    with refused(ConfigError, "data.caption_features", "text_encoder.max_tokens"):
        load_conditions(shorter, torch.device("cpu"))
    joined = case.with_overrides(cached, f"data.mixture=[{cached.data.validation}]")
    with refused(ConfigError, "data.caption_features", "data.corpora"):
        load_conditions(joined, torch.device("cpu"))
