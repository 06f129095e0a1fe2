"""bf16 is bf16 at every ZeRO stage, where DeepSpeed's guard acts as it does on CUDA."""

from pathlib import Path

import compute_dtype_case as dtype_case
import pytest
import training_case as case
from worker_processes import run_workers

from gear_dist.config.schema import RunConfig
from sample_shards import SampleShards


@pytest.fixture
def config(tmp_path: Path, sample_shards: SampleShards, teacher: Path) -> RunConfig:
    steps = ("stages.tokenizer.steps=1", "stages.joint.steps=1", "stages.generator.steps=1")
    return case.tiny_config(tmp_path, sample_shards.file, teacher, *steps)


def test_the_imitation_turns_an_outer_autocast_off(config: RunConfig) -> None:
    assert run_workers(1, dtype_case.dtype_under_outer_autocast, 1, config) == ["float32"]


def test_trained_passes_compute_in_the_precision_asked_for(config: RunConfig) -> None:
    settings = [("bf16", stage) for stage in range(4)] + [("fp32", 0), ("fp32", 3)]
    configs = [
        case.with_overrides(
            case.named(config, f"{precision}-{stage}"),
            f"engine.precision={precision}",
            f"engine.zero_stage={stage}",
        )
        for precision, stage in settings
    ]
    [found] = run_workers(1, dtype_case.recorded_dtypes, 1, configs)
    for (precision, stage), networks in zip(settings, found, strict=True):
        assert networks.keys() == {"tokenizer", "discriminator", "generator"}, (precision, stage)
        dtypes = {dtype for kinds in networks.values() for dtype in kinds.values()}
        assert dtypes == {"bfloat16" if precision == "bf16" else "float32"}, (precision, stage)
        assert "convolution" in networks["tokenizer"]
        assert "linear" in networks["generator"]
