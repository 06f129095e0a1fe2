"""Every parameter takes part in every step.

DeepSpeed 0.19.8 at ZeRO 3, and with offload, moves a parameter again by the last gradient that it
had where no loss reached it in a step; so there must be none, in any stage, arm and family.
"""

from pathlib import Path

import pytest
import training_case as case
import unused_parameters_case
from worker_processes import run_workers

from gear_dist.config.loading import load_config
from gear_dist.config.schema import RunConfig
from gear_dist.errors import ConfigError
from refusals import refused
from sample_shards import SampleShards

STAGES = ("stages.tokenizer.steps=1", "stages.joint.steps=1", "stages.generator.steps=1")
VARIANTS: dict[str, tuple[str, ...]] = {
    "vq": (),
    "ibq": ("tokenizer.quantizer=ibq",),
    "lfq": ("tokenizer.quantizer=lfq", "tokenizer.code_width=5"),
    "straight-through": ("alignment.estimator=straight-through", "collapse.patience=0"),
    "only hard": ("alignment.soft_weight=0",),
    "no alignment": ("alignment.soft_weight=0", "alignment.hard_weight=0"),
    "LeCam": ("discriminator.lecam_weight=0.5", "discriminator.norm=group"),
}


@pytest.fixture
def config(tmp_path: Path, sample_shards: SampleShards, teacher: Path) -> RunConfig:
    return case.tiny_config(tmp_path, sample_shards.file, teacher, *STAGES)


def test_a_loss_reaches_every_parameter(config: RunConfig) -> None:
    common = ("discriminator.norm_groups=4", "engine.zero_stage=0")
    configs = [
        case.with_overrides(case.named(config, f"v{i}"), *words, *common)
        for i, words in enumerate(VARIANTS.values())
    ]
    [found] = run_workers(1, unused_parameters_case.unused_parameters, 1, configs)
    for name, networks in zip(VARIANTS, found, strict=True):
        assert networks == {"tokenizer": [], "discriminator": [], "generator": []}, name


def test_a_projector_that_nothing_trains_is_refused() -> None:
    with refused(ConfigError, "alignment.soft_weight=0.5", "alignment.hard_weight=0.0"):
        load_config(None, ["alignment.hard_weight=0"])
