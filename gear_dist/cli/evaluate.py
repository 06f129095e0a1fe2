"""The `evaluate` command: what a trained run is worth, into its evaluation.json."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gear_dist.cli.arguments import MAX_SEED, add_device, number, path_argument, read_device, whole
from gear_dist.config.checks import MAX_THREADS
from gear_dist.errors import DataError
from gear_dist.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor

    from gear_dist.data.labelled import LabelledImages
    from gear_dist.inference.pipeline import GearPipeline

CACHE = Path(".gear/classifiers")
CLASSIFIER_STEPS = 450
ATTRIBUTE_STEPS = 3
"""Times as many for the classifier of attributes, which learns several things at once."""


def add_commands(subparsers: Any) -> None:
    """Add `evaluate`."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure a run: class accuracy, Frechet distance, PSNR; writes evaluation.json",
        description="A classifier trained on the run's real images (once a corpus, kept in "
        "--cache) judges images generated with the run's guidance and without; the validation "
        "corpus is reconstructed. Writes RUN_FOLDER/evaluation.json.",
    )
    parser.add_argument("run_folder", type=path_argument, help="run folder, such as runs/demo")
    parser.add_argument(
        "--images-per-class",
        type=whole(1),
        default=32,
        help="for each seed and guidance (default: 32)",
    )
    parser.add_argument(
        "--seeds", type=whole(0, MAX_SEED), nargs="+", default=[0, 1, 2], help="(default: 0 1 2)"
    )
    parser.add_argument("--guidance", type=number(), help="default: the run's sampling.guidance")
    parser.add_argument(
        "--max-validation", type=whole(1), default=5000, help="validation images (default: 5000)"
    )
    parser.add_argument(
        "--captions",
        type=whole(1),
        default=256,
        help="of a text-to-image run: held-out captions for each seed (default: 256)",
    )
    parser.add_argument(
        "--attributes",
        default="",
        help="of a text-to-image run: what images must show, comma-separated, of the attributes "
        "that the corpus records (default: all of them)",
    )
    parser.add_argument(
        "--cache",
        type=path_argument,
        default=CACHE,
        help=f"folder of classifiers (default: {CACHE})",
    )
    parser.add_argument(
        "--classifier-steps",
        type=whole(1),
        default=CLASSIFIER_STEPS,
        help=f"training steps of the classifier (default: {CLASSIFIER_STEPS})",
    )
    parser.add_argument(
        "--threads", type=whole(1, MAX_THREADS), default=1, help="CPU threads (default: 1)"
    )
    add_device(parser)
    parser.set_defaults(run=run_evaluate)


def run_evaluate(args: argparse.Namespace) -> int:
    """Evaluate a run folder, print the figures, write evaluation.json; 0.

    Raises:
        ConfigError: an impossible option. DataError: no weights, unreachable corpora.
    """
    folder = RunFolder.open(args.run_folder)
    result, captions = _evaluate(args, folder)
    folder.write_evaluation(result.to_json())
    for line in result.summary():
        print(line, flush=True)
    print(folder.evaluation_path, flush=True)
    if captions is not None:
        folder.write_caption_scores(captions.to_json())
        for line in captions.summary():
            print(line, flush=True)
        print(folder.caption_scores_path, flush=True)
    return 0


def _evaluate(args: argparse.Namespace, folder: RunFolder) -> tuple[Any, Any]:
    """The evaluation, and of a text-to-image run the scores of its captions, else None."""
    import torch

    from gear_dist.evaluation.classifier import load_or_train_classifier, load_validation
    from gear_dist.evaluation.protocol import EvaluationSettings, evaluate
    from gear_dist.inference.model_folder import open_model
    from gear_dist.inference.pipeline import GearPipeline
    from gear_dist.inference.seeds import derive_seeds
    from gear_dist.models.generator import Condition

    config = folder.read_config()
    device = read_device(args)
    torch.set_num_threads(args.threads)
    pair = GearPipeline.load(open_model(folder.path), device)
    judge = load_or_train_classifier(
        config.data, args.cache, steps=args.classifier_steps, device=device, report=_say
    )
    num_classes = config.generator.num_classes
    of_classes = pair.generator is not None and config.generator.condition == "class"
    if judge and of_classes and judge.stats.num_classes > num_classes:
        raise DataError(
            f"{folder.path}: generator.num_classes={num_classes}, but {config.data.train} has "
            f"{judge.stats.num_classes} classes: evaluate on the corpus of the run"
        )

    guidance = args.guidance
    if guidance is None:
        # Without a null class there is nothing to guide by.
        guidance = config.sampling.guidance if config.generator.class_dropout else 1.0

    def generate(condition: Condition, guidance: float, seed: int) -> torch.Tensor:
        sampling = dataclasses.replace(config.sampling, guidance=guidance)
        return pair.generate(condition, derive_seeds(seed, range(condition.num_images)), sampling)

    validation = load_validation(config.data, args.max_validation)
    of_captions = pair.generator is not None and not of_classes
    reason = "by class: captions are scored instead" if of_captions else "no generator was trained"
    result = evaluate(
        generate=generate if of_classes else None,
        reconstruct=pair.reconstruct,
        judge=judge,
        validation=validation,
        guidance=guidance,
        settings=EvaluationSettings(args.images_per_class, seeds=tuple(args.seeds)),
        report=_say,
        not_generated=reason,
    )
    return result, _score_captions(args, pair, validation, guidance) if of_captions else None


def _score_captions(
    args: argparse.Namespace, pair: "GearPipeline", validation: "LabelledImages", guidance: float
) -> Any:
    from gear_dist.evaluation.captions import (
        choose_attributes,
        load_or_train_attribute_judge,
        score_captions,
    )
    from gear_dist.inference.seeds import derive_seeds

    data, sampling = pair.config.data, dataclasses.replace(pair.config.sampling, guidance=guidance)
    wanted = [name for name in args.attributes.split(",") if name]
    attributes = choose_attributes(wanted, validation.attribute_sizes)
    if not attributes or not any(validation.captions):
        _say(f"{data.validation or data.train} records no attributes, or no captions: not scored")
        return None
    judge = load_or_train_attribute_judge(
        data,
        attributes,
        args.cache,
        steps=ATTRIBUTE_STEPS * args.classifier_steps,
        device=pair.device,
        report=_say,
    )

    def generate(captions: Sequence[str], seed: int) -> "Tensor":
        return pair.generate(
            pair.read_prompts(captions), derive_seeds(seed, range(len(captions))), sampling
        )

    return score_captions(
        generate,
        pair.reconstruct,
        judge,
        validation,
        count=args.captions,
        guidance=guidance,
        seeds=args.seeds,
        device=pair.device,
        report=_say,
    )


def _say(line: str) -> None:
    print(f"evaluate: {line}", flush=True)
