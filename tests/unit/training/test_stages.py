"""Stages and learning rates are functions of the step."""

import pytest

from gear_dist.config.training import OptimizerConfig, StageConfig, StagesConfig
from gear_dist.training.lr_schedule import rate_factor
from gear_dist.training.stages import plan_stages


def test_stages_follow_one_another_and_empty_ones_are_left_out():
    stages = plan_stages(StagesConfig(tokenizer=StageConfig(3), generator=StageConfig(5)))
    assert [(s.name, s.start, s.end) for s in stages] == [("tokenizer", 0, 3), ("generator", 3, 8)]


def test_warm_up_restarts_with_each_stage():
    config = OptimizerConfig(warmup_steps=4)
    first, second = plan_stages(StagesConfig(StageConfig(10), StageConfig(10, lr_scale=0.5)))
    assert [rate_factor(config, first, i) for i in range(6)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1, 1]
    )
    assert rate_factor(config, second, 10) == pytest.approx(0.1)
    assert rate_factor(config, second, 19) == pytest.approx(0.5)


def test_cosine_ends_at_its_ratio():
    config = OptimizerConfig(schedule="cosine", final_lr_ratio=0.1)
    [stage] = plan_stages(StagesConfig(joint=StageConfig(100)))
    factors = [rate_factor(config, stage, i) for i in range(101)]
    assert factors[0] == 1
    assert factors[50] == pytest.approx(0.55)
    assert factors[100] == pytest.approx(0.1)
    assert factors == sorted(factors, reverse=True)
