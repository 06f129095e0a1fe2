"""Whole runs by real worker processes: resume, precision, arms, accumulation, failures."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import training_case as case
from safetensors.torch import load_file
from worker_processes import run_workers

from gear_dist.config.loading import config_yaml
from gear_dist.config.schema import RunConfig
from gear_dist.runs.run_folder import RunFolder
from loader_cases import numbered_samples, write_corpus
from sample_shards import SampleShards

JOINT = ("stages.tokenizer.steps=3", "stages.joint.steps=4")
GROUPED = (
    "discriminator.norm=group",
    "discriminator.norm_groups=4",
    "discriminator.lecam_weight=0.5",
)


@pytest.fixture
def config(tmp_path: Path, sample_shards: SampleShards, teacher: Path) -> RunConfig:
    return case.tiny_config(tmp_path, sample_shards.file, teacher, *JOINT)


def test_stopped_and_resumed_equals_straight_bit_for_bit(config: RunConfig) -> None:
    """Two ranks, every ZeRO stage, quantizer and option of the discriminator, stopped at the border
    of the stages and inside."""
    variants: list[tuple[str, ...]] = [
        ("engine.zero_stage=0",),
        ("engine.zero_stage=1", "engine.precision=bf16", "engine.accumulation=2"),
        ("engine.zero_stage=2", "tokenizer.quantizer=ibq", "discriminator.lecam_weight=0.5"),
        ("engine.zero_stage=3", "tokenizer.quantizer=lfq", "tokenizer.code_width=5", *GROUPED),
    ]
    found = run_workers(2, case.straight_and_resumed_each, 2, config, variants, [3, 5])
    for by_rank in found:
        assert dict(zip(variants, by_rank, strict=True)) == {v: [] for v in variants}


def test_a_stop_at_a_step_with_a_checkpoint_saves_once(config: RunConfig) -> None:
    saving = case.with_overrides(config, "checkpoint.every_steps=1")
    results = run_workers(2, case.train_until, 2, saving, 2)
    assert [(result.state, result.step) for result in results] == [("interrupted", 2)] * 2
    steps = [path.name.split("-")[1] for path in (saving.run.folder / "checkpoints").glob("step-*")]
    assert sorted(steps) == ["00000001", "00000002"]


def test_bf16_keeps_fp32_masters_averages_and_codebook(config: RunConfig) -> None:
    """At every ZeRO stage; losses stay near fp32's, and are not fp32's."""
    settings = [(p, s) for p in ("fp32", "bf16") for s in range(4)]
    configs = [
        case.with_overrides(
            case.named(config, f"{precision}{stage}"),
            f"engine.precision={precision}",
            f"engine.zero_stage={stage}",
        )
        for precision, stage in settings
    ]
    [results] = run_workers(1, case.train_each, 1, configs)
    losses = {}
    for setting, changed, (_, state) in zip(settings, configs, results, strict=True):
        for name in ("tokenizer", "discriminator", "generator"):
            for kind in ("weights", "average", "exp_avg", "exp_avg_sq"):
                found = case.kind_of(state, name, kind).values()
                assert found or (name, kind) == ("discriminator", "average")
                assert {t.dtype for t in found} <= {torch.float32}, (setting, name, kind)
        codebook = load_file(changed.run.folder / "weights" / "tokenizer.safetensors")
        assert codebook["quantize.embedding.weight"].dtype == torch.float32
        last = RunFolder(changed.run.folder).read_metrics()[-1]
        losses[setting] = (last["l1"], last["cross_entropy"], last["align_soft"])
    for stage in range(4):
        for exact, rounded in zip(losses["fp32", stage], losses["bf16", stage], strict=True):
            assert rounded == pytest.approx(exact, rel=0.03, abs=0.01)
            assert rounded != exact


def test_frozen_tokenizer_arm_trains_the_generator_alone(config: RunConfig) -> None:
    """LlamaGen-REPA: stage 0, then the generator stage on its averaged, frozen tokenizer."""
    arm = case.with_overrides(config, "stages.joint.steps=0", "stages.generator.steps=4")
    first = case.with_overrides(arm, "stages.generator.steps=0")
    [[(result, _)]] = run_workers(1, case.train_each, 1, [first])
    assert result.step == 3
    before = load_file(arm.run.folder / "weights" / "tokenizer.safetensors")
    [[(result, state)]] = run_workers(1, case.train_each, 1, [arm])
    assert result.step == 7
    after = load_file(arm.run.folder / "weights" / "tokenizer.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    networks = {key.split(".")[0] for key in state["tensors"]}
    assert networks == {"generator", "tokenizer", "random", "window"}
    assert not case.kind_of(state, "tokenizer", "weights")
    last = RunFolder(arm.run.folder).read_metrics()[-1]
    assert last["stage"] == "generator"
    assert {"cross_entropy", "align_hard"} <= set(last)
    assert not {"l1", "align_soft", "discriminator_loss"} & set(last)


def test_accumulation_equals_the_larger_batch(config: RunConfig) -> None:
    """Where nothing is per micro-batch (no batch norm, no average entropy): the generator stage.

    The loader yields the same images either way, and drops the same labels; rounding alone differs.
    """
    first = case.with_overrides(config, "stages.joint.steps=0", "stages.generator.steps=0")
    base = case.with_overrides(
        case.named(config, "generator"),
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
    configs = [
        case.with_overrides(case.named(base, f"parts{n}"), f"engine.accumulation={n}")
        for n in (1, 4)
    ]
    [[_, (_, whole), (_, parts)]] = run_workers(1, case.train_each, 1, [first, *configs])
    a, b = (case.kind_of(state, "generator", "weights") for state in (whole, parts))
    assert a
    assert a.keys() == b.keys()
    for name, values in a.items():
        assert torch.allclose(values, b[name], rtol=1e-5, atol=1e-6), name


def test_bad_samples_are_listed_in_the_run_folder(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks train on shards without a manifest, one image of which does not decode."""
    samples = numbered_samples(24)
    samples[5]["png"] = b"no image"
    spoiled = write_corpus(tmp_path / "spoiled", [samples[:12], samples[12:]])
    shutil.rmtree(tmp_path / "spoiled" / "manifest")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    changed = case.with_overrides(config, f"data.train={spoiled}", "data.max_bad_share=0.1")
    [[(result, _)], _] = run_workers(2, case.train_each, 2, [changed])
    assert result.state == "done"
    # Each rank names what it has met itself, in whichever epoch.
    (line,) = set((changed.run.folder / "bad_samples.txt").read_text().splitlines())
    assert "shards/000000.tar: sample 00000005: does not decode" in line
    record = json.loads((changed.run.folder / "environment.json").read_text())
    assert record["order"]["epochs"][0]["samples"] == 24


def test_metrics_cover_all_ranks(config: RunConfig) -> None:
    """Usage and its window count both ranks' tokens; every figure of a record is a number."""
    run_workers(2, case.train_each, 2, [config])
    records = RunFolder(config.run.folder).read_metrics()
    assert [record["step"] for record in records] == list(range(1, 8))
    assert records[0]["usage_window_tokens"] == 8 * 64
    assert records[1]["usage_window_tokens"] == 2 * 8 * 64
    for record in records:
        numbers = [v for k, v in record.items() if k != "stage"]
        assert all(isinstance(v, (int, float)) and math.isfinite(v) for v in numbers)
    environment = RunFolder(config.run.folder).read_environment()
    assert (environment["world_size"], environment["kernels"]) == (2, "torch")
    assert environment["vocabulary_loss"] == "torch"


def test_a_run_that_diverges_stops_with_the_reason(config: RunConfig) -> None:
    """Exit code 4, status failed, and no checkpoint of the broken state."""
    words = _words(config, "optimizer.tokenizer_lr=1e30", "checkpoint.every_steps=2")
    command = [sys.executable, "-m", "gear_dist", "train", *words]
    found = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert found.returncode == 4, found.stderr
    error = found.stderr
    assert "not finite" in error
    assert "optimizer" in error
    assert "Traceback" not in error
    folder = RunFolder(config.run.folder)
    status = folder.read_status()
    assert status is not None
    assert (status.state, status.exit_code) == ("failed", 4)
    assert not list(folder.checkpoints.glob("*/manifest.json"))


def test_a_damaged_checkpoint_is_passed_over(config: RunConfig, tmp_path: Path) -> None:
    """The one before serves, with a warning; the run ends as the undamaged one."""
    often = case.with_overrides(config, "checkpoint.every_steps=2")
    [[(_, straight)]] = run_workers(1, case.train_each, 1, [case.named(often, "straight")])
    run_workers(1, case.train_each, 1, [case.with_overrides(often, "stages.joint.steps=2")])
    newest = RunFolder(config.run.folder).checkpoints
    pointer = json.loads((newest / "latest.json").read_text())
    part = newest / pointer["folder"] / "part-00000.safetensors"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(bytes(data))
    [[(_, resumed)]] = run_workers(1, case.train_each, 1, [often])
    assert case.differences(straight, resumed) == []


def _words(config: RunConfig, *overrides: str) -> list[str]:
    Path(config.run.root).mkdir(parents=True, exist_ok=True)
    path = Path(config.run.root) / f"{config.run.name}.yaml"
    path.write_text(config_yaml(config))
    return [str(path), *overrides]
