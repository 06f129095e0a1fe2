"""Which stage a step belongs to, and its learning rates: functions of the step alone."""

import math
from typing import Literal, NamedTuple

from gear_dist.config.schema import OptimizerConfig, StagesConfig

StageName = Literal["tokenizer", "joint", "generator"]

TRAINED: dict[StageName, tuple[str, ...]] = {
    "tokenizer": ("tokenizer", "discriminator"),
    "joint": ("tokenizer", "discriminator", "generator"),
    "generator": ("generator",),
}
AVERAGED = ("tokenizer", "generator")


class Stage(NamedTuple):
    """A stretch of the run's steps."""

    name: StageName
    start: int
    """First step, counted over the whole run."""
    steps: int
    lr_scale: float

    @property
    def end(self) -> int:
        """First step after it."""
        return self.start + self.steps


def plan_stages(config: StagesConfig) -> list[Stage]:
    """Stages in order, those of 0 steps left out."""
    names: tuple[StageName, ...] = ("tokenizer", "joint", "generator")
    stages: list[Stage] = []
    start = 0
    for name in names:
        stage = getattr(config, name)
        if stage.steps:
            stages.append(Stage(name, start, stage.steps, stage.lr_scale))
            start += stage.steps
    return stages


def rate_factor(config: OptimizerConfig, stage: Stage, step: int) -> float:
    """What the rates are multiplied by at a step: the stage's scale times `_shape`."""
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
