"""The stages of a run: which networks each trains, and which steps are its own. No torch."""

from typing import Literal, NamedTuple

from gear_dist.config.training import StagesConfig

StageName = Literal["tokenizer", "joint", "generator"]
TRAINED: dict[StageName, tuple[str, ...]] = {
    "tokenizer": ("tokenizer", "discriminator"),
    "joint": ("tokenizer", "discriminator", "generator"),
    "generator": ("generator",),
}
AVERAGED = ("tokenizer", "generator")


class Stage(NamedTuple):
    """A range of the run's steps."""

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
