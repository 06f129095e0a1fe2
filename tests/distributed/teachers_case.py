"""A joint step that moves nothing, under two teachers together and under each of them alone."""

import shutil
from pathlib import Path

import training_case as case
from safetensors.torch import load_file, save_file

from gear_dist.config.schema import RunConfig
from gear_dist.runs.run_folder import RunFolder

STILL = (
    "stages.joint.steps=1",
    "optimizer.tokenizer_lr=0",
    "optimizer.discriminator_lr=0",
    "optimizer.generator_lr=0",
    "generator.residual_dropout=0",
    "generator.feed_forward_dropout=0",
    "generator.token_dropout=0",
)


def alignments(
    rank: int, world_size: int, together: RunConfig, alone: list[RunConfig]
) -> list[tuple[float, float]]:
    """Worker: (soft, hard) alignment of the first step, by two teachers, again, and by each.

    All start from the networks of the first run; of its projectors, each has its own.
    """
    case.train(together, rank, world_size)
    start = f"stages.init_from={together.run.folder}"
    again = case.with_overrides(case.named(together, "again"), start)
    configs = [again, *(_starting_from(together, one, i) for i, one in enumerate(alone))]
    for config in configs:
        case.train(config, rank, world_size)
    return [_first_alignment(config) for config in [together, *configs]]


def _starting_from(together: RunConfig, alone: RunConfig, projector: int) -> RunConfig:
    folder = Path(f"{together.run.folder}-{projector}")
    shutil.copytree(together.run.folder, folder)
    weights = load_file(folder / "weights" / "projectors.safetensors")
    prefix = f"{projector}."
    kept = {f"0.{k.removeprefix(prefix)}": v for k, v in weights.items() if k.startswith(prefix)}
    assert len(kept) == len(weights) / 2
    save_file(kept, folder / "weights" / "projectors.safetensors")
    return case.with_overrides(alone, f"stages.init_from={folder}")


def _first_alignment(config: RunConfig) -> tuple[float, float]:
    record = RunFolder(config.run.folder).read_metrics()[0]
    return record["align_soft"], record["align_hard"]
