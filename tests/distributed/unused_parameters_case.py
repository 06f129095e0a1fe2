"""Which parameters no loss has reached when their engine steps."""

import training_case as case

from gear_dist.config.schema import RunConfig
from gear_dist.training.engine import TrainingEngine


def unused_parameters(
    rank: int, world_size: int, configs: list[RunConfig]
) -> list[dict[str, list[str]]]:
    """Worker: for each training at ZeRO 0, parameters without a gradient at a step, by network."""
    found: list[dict[str, list[str]]] = []
    step = TrainingEngine.step

    def looking(engine: TrainingEngine, learning_rate: float) -> None:
        unused = found[-1].setdefault(engine.name, [])
        unused += [name for name, p in engine.module.named_parameters() if p.grad is None]
        step(engine, learning_rate)

    TrainingEngine.step = looking  # type: ignore[method-assign]
    try:
        for config in configs:
            found.append({})
            assert case.train(config, rank, world_size).state == "done"
    finally:
        TrainingEngine.step = step  # type: ignore[method-assign]
    return found
