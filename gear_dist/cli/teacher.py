"""The `teacher` command: train the small convolutional teacher on a labelled corpus."""

import argparse
from typing import Any

from gear_dist.cli.arguments import (
    MAX_SEED,
    add_device,
    number,
    output_file,
    read_device,
    whole,
)
from gear_dist.config.checks import MAX_THREADS
from gear_dist.errors import ConfigError, DataError

STEPS = 600
BATCH = 64


def add_commands(subparsers: Any) -> None:
    """Add `teacher`."""
    parser = subparsers.add_parser(
        "teacher",
        help="train a small teacher on a labelled corpus (for teacher.name=convnet)",
        description="Train a small convolutional teacher on a sharded corpus's classes and "
        "attributes. A file written from the same corpus with the same settings is kept.",
    )
    parser.add_argument("corpus", help="sharded corpus: s3://BUCKET/PREFIX, file:///FOLDER or path")
    parser.add_argument(
        "--out", type=output_file(), required=True, help="file to write (.safetensors)"
    )
    parser.add_argument("--validation", default="", help="sharded corpus to measure it on")
    parser.add_argument("--endpoint", default="", help="S3 endpoint, as data.endpoint")
    sizes = parser.add_argument_group("sizes, as in the run that will use it")
    sizes.add_argument(
        "--image-size", type=whole(4, 65_536), default=32, help="pixels per side (default: 32)"
    )
    sizes.add_argument(
        "--grid-size", type=whole(1, 65_536), default=8, help="positions per side (default: 8)"
    )
    parser.add_argument("--steps", type=whole(1), default=STEPS, help=f"steps (default: {STEPS})")
    parser.add_argument(
        "--seconds",
        type=number(above=True),
        default=55,
        help="time limit of training (default: 55)",
    )
    parser.add_argument(
        "--batch", type=whole(2), default=BATCH, help=f"batch size (default: {BATCH})"
    )
    parser.add_argument("--seed", type=whole(0, MAX_SEED), default=0, help="seed (default: 0)")
    # Two threads on two idle cores save a third of the time; on busy ones they wait for each
    # other and take fifteen times as long.
    parser.add_argument(
        "--threads", type=whole(1, MAX_THREADS), default=1, help="CPU threads (default: 1)"
    )
    add_device(parser)
    parser.add_argument("--again", action="store_true", help="train again even if the file matches")
    parser.set_defaults(run=run_teacher)


def run_teacher(args: argparse.Namespace) -> int:
    """Train the teacher, or keep the file that is there; 0.

    Raises:
        ConfigError: sizes that do not fit, a file that is not a teacher under --out.
        DataError: the corpus is unreachable, damaged, or has nothing to learn.
    """
    from gear_dist.data.corpus import check_same_classes, open_corpus
    from gear_dist.models.classifier_training import load_classifier
    from gear_dist.models.teachers.convnet import TeacherRecipe, num_halvings

    if args.out.is_dir():
        raise ConfigError(f"--out {args.out} is a folder: name a file")
    num_halvings(args.image_size, args.grid_size)
    info = open_corpus(args.corpus, args.endpoint).manifest.info
    if args.validation:
        held_out = open_corpus(args.validation, args.endpoint).manifest.info
        check_same_classes(args.corpus, info.classes, args.validation, held_out.classes)
    recipe = TeacherRecipe(
        image_size=args.image_size,
        grid_size=args.grid_size,
        steps=args.steps,
        batch=args.batch,
        seed=args.seed,
        plan_hash=info.plan_hash,
    )
    found = load_classifier(args.out)
    if found and not args.again and recipe.metadata().items() <= found[0].items():
        print(f"teacher: {args.out} matches the corpus and settings, kept", flush=True)
        return 0
    if len(info.classes) < 2 and not info.attributes:
        raise DataError(
            f"{args.corpus}: a teacher needs two classes or some attributes to learn; give the "
            "images class folders, or use teacher.name=dinov2"
        )
    _train(args, recipe)
    return 0


def _train(args: argparse.Namespace, recipe: Any) -> None:
    import torch

    from gear_dist.data.labelled import LoadSettings, load_labelled
    from gear_dist.models.teachers.convnet import train_convnet

    device = read_device(args)
    torch.set_num_threads(args.threads)
    settings = LoadSettings(args.image_size, augment_below=2048, seed=args.seed)
    data = load_labelled(args.corpus, settings, endpoint=args.endpoint)
    held_out = None
    if args.validation:
        settings = LoadSettings(args.image_size, max_images=2000)
        held_out = load_labelled(args.validation, settings, endpoint=args.endpoint)
    learned = [f"{data.num_classes} classes", *data.attribute_sizes]
    print(f"teacher: {data.num_sources} images; learns {', '.join(learned)}", flush=True)
    metadata = train_convnet(
        data,
        recipe,
        args.out,
        seconds=args.seconds,
        device=device,
        held_out=held_out,
        report=lambda line: print(f"teacher: {line}", flush=True),
    )
    measured = ", ".join(f"{k} {v:.3f}" for k, v in metadata["held_out_accuracy"].items())
    print(
        f"teacher: {metadata['steps_done']} steps in {metadata['train_seconds']} s"
        + (f"; held-out accuracy: {measured}" if measured else "")
        + f"; wrote {args.out}",
        flush=True,
    )
