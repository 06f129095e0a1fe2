"""The `reproduce` command: the method's arms beside each other, on one corpus."""

import argparse
from pathlib import Path
from typing import Any

from gear_dist.cli.arguments import MAX_SEED, path_argument, whole
from gear_dist.cli.config_arguments import add_config_words
from gear_dist.cli.evaluate import CLASSIFIER_STEPS
from gear_dist.config.checks import MAX_THREADS
from gear_dist.reproduce.arms import ARMS


def add_commands(subparsers: Any) -> None:
    """Add `reproduce`."""
    parser = subparsers.add_parser(
        "reproduce",
        help="compare the method's arms from one warm-up: curves and a table",
        description="Trains each arm with each seed from one warmed-up tokenizer, measures every "
        "checkpoint (Frechet distance and class accuracy without guidance, PSNR), and writes "
        "OUT/convergence.md and .svg. Run again, it resumes where it stopped. Without data.train "
        "it uses the sample corpus.",
    )
    add_config_words(parser)
    parser.add_argument(
        "--out",
        type=path_argument,
        default=Path("runs/convergence"),
        help="(default: runs/convergence)",
    )
    parser.add_argument(
        "--seeds", type=whole(0, MAX_SEED), nargs="+", default=[0, 1, 2], help="(default: 0 1 2)"
    )
    parser.add_argument(
        "--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="(default: all)"
    )
    parser.add_argument(
        "--every", type=whole(1), default=125, help="steps between measurements (default: 125)"
    )
    parser.add_argument(
        "--images-per-class", type=whole(1), default=64, help="generated to measure (default: 64)"
    )
    parser.add_argument(
        "--classifier-steps",
        type=whole(1),
        default=CLASSIFIER_STEPS,
        help=f"training steps of the classifier (default: {CLASSIFIER_STEPS})",
    )
    parser.add_argument(
        "--jobs", type=whole(1, MAX_THREADS), default=2, help="runs in parallel (default: 2)"
    )
    parser.set_defaults(run=run_reproduce)


def run_reproduce(args: argparse.Namespace) -> int:
    """Train, measure, write the table and the curves; 0.

    Raises:
        UserError: an impossible option, or a command that failed.
    """
    from gear_dist.reproduce.page import draw_curves, draw_reached, draw_table
    from gear_dist.reproduce.study import Study, run_study
    from gear_dist.storage.atomic import write_text

    study = Study(
        folder=args.out,
        configs=tuple(args.configs),
        overrides=tuple(args.overrides),
        arms=tuple(args.arms),
        seeds=tuple(args.seeds),
        every_steps=args.every,
        images_per_class=args.images_per_class,
        classifier_steps=args.classifier_steps,
        jobs=args.jobs,
    )
    points = run_study(study, lambda line: print(f"reproduce: {line}", flush=True))
    table = f"{draw_table(points)}\n\n{draw_reached(points)}\n"
    print(f"\n{table}", flush=True)
    for path, text in (
        (args.out / "convergence.md", table),
        (args.out / "convergence.svg", draw_curves(points)),
    ):
        write_text(path, text)
        print(path, flush=True)
    return 0
