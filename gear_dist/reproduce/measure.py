"""Measures every checkpoint of a run: a process of its own, so that several do it at a time.

`python -m gear_dist.reproduce.measure RUN_FOLDER STAGE IMAGES_PER_CLASS
CLASSIFIER_STEPS JUDGES OUT RECIPE`
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch

from gear_dist.checkpoints.address import checkpoint_storage
from gear_dist.checkpoints.listing import find_published
from gear_dist.distributed.device import choose_device, choose_precision
from gear_dist.errors import DataError
from gear_dist.evaluation.classifier import load_or_train_classifier, load_validation
from gear_dist.evaluation.protocol import EvaluationSettings, evaluate
from gear_dist.inference.consolidate import consolidated
from gear_dist.inference.pipeline import GearPipeline
from gear_dist.inference.seeds import derive_seeds
from gear_dist.models.generator import Condition
from gear_dist.planning.hardware import make_rates
from gear_dist.planning.trace_step import count_stage
from gear_dist.reproduce.study import Point
from gear_dist.runs.run_folder import RunFolder
from gear_dist.storage.atomic import write_file

MAX_VALIDATION = 2_000
_TERA = 1e12


def measure_run(
    folder: RunFolder, stage: Any, *, images_per_class: int, classifier_steps: int, judges: Path
) -> list[Point]:
    """A point for each checkpoint, the oldest first.

    Args:
        folder: of a finished run.
        stage: the one that it trained.
        images_per_class: generated to measure.
        classifier_steps: training steps of the judge, where `judges` holds none yet.
        judges: folder of judges.

    Raises:
        DataError: the corpus has fewer than two classes, so nobody can judge.
    """
    config = folder.read_config()
    device = choose_device(config.run.device)
    judge = load_or_train_classifier(config.data, judges, steps=classifier_steps, device=device)
    if judge is None:
        raise DataError(f"{config.data.train}: arms are compared by classes, and there is only one")
    validation = load_validation(config.data, MAX_VALIDATION)
    records = {record["step"]: record for record in folder.read_metrics()}
    flops = _flops_a_step(folder, stage)
    storage = checkpoint_storage(config.run, config.checkpoint, config.data.endpoint)
    points = []
    for found in find_published(storage):
        with consolidated(str(config.run.folder / "checkpoints" / found.folder)) as model:
            pair = GearPipeline.load(model, device)
        plain = dataclasses.replace(config.sampling, guidance=1.0)

        def generate(condition: Condition, guidance: float, seed: int) -> torch.Tensor:
            seeds = derive_seeds(seed, range(condition.num_images))
            return pair.generate(condition, seeds, plain)  # noqa: B023 (called in this round)

        result = evaluate(
            generate=generate,
            reconstruct=pair.reconstruct,
            judge=judge,
            validation=validation,
            guidance=1.0,
            settings=EvaluationSettings(images_per_class, seeds=(0,)),
        )
        assert result.unguided is not None
        step = found.manifest.step
        record = records[step]
        points.append(
            Point(
                step=step,
                frechet=result.unguided.frechet.median,
                accuracy=result.unguided.accuracy.median,
                psnr_db=result.reconstruction.psnr_db,
                codebook_usage=record.get("codebook_usage"),
                cross_entropy=record["cross_entropy"],
                teraflops=flops * step / _TERA,
                seconds=record["time_s"],
            )
        )
    return points


def _flops_a_step(folder: RunFolder, stage: Any) -> float:
    config = folder.read_config()
    device = choose_device(config.run.device)
    precision: Any = choose_precision(config.engine.precision, device)
    config = dataclasses.replace(
        config, engine=dataclasses.replace(config.engine, precision=precision)
    )
    batch = config.engine.global_batch
    cost = count_stage(stage, config, images=batch, on_cuda=False, rates=make_rates({}))
    return cost.total.flops


def main(words: list[str]) -> None:
    """See the module."""
    run, stage, images_per_class, classifier_steps, judges, out, recipe = words
    torch.set_num_threads(1)
    points = measure_run(
        RunFolder.open(run),
        stage,
        images_per_class=int(images_per_class),
        classifier_steps=int(classifier_steps),
        judges=Path(judges),
    )
    node = {"recipe": json.loads(recipe), "points": [point._asdict() for point in points]}
    write_file(Path(out), json.dumps(node, indent=1).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
