"""Learning rates: functions of the step alone. No torch."""

import math

from gear_dist.config.schema import OptimizerConfig
from gear_dist.training.stages import Stage


def rate_factor(config: OptimizerConfig, stage: Stage, step: int) -> float:
    """The factor on all learning rates at a step: the stage's lr_scale times the schedule."""
    return stage.lr_scale * _shape(config, stage, step)


def _shape(config: OptimizerConfig, stage: Stage, step: int) -> float:
    """Linear warm-up, then the schedule, 1 at the most."""
    done = step - stage.start
    if done < config.warmup_steps:
        return (done + 1) / (config.warmup_steps + 1)
    if config.schedule == "constant":
        return 1.0
    left = (done - config.warmup_steps) / max(1, stage.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, left)))
    return config.final_lr_ratio + (1 - config.final_lr_ratio) * cosine
