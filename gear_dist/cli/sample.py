"""Commands that use trained weights: `sample` and `reconstruct`."""

import argparse
import dataclasses
import sys
import typing
from collections.abc import Sequence
from typing import Any

from gear_dist.cli import sample_bulk
from gear_dist.cli.arguments import (
    MAX_GRID_IMAGES,
    MAX_SEED,
    add_device,
    number,
    output_file,
    path_argument,
    read_argument,
    read_device,
    whole,
)
from gear_dist.cli.conditions import (
    add_conditions,
    add_seed,
    read_class_indices,
    read_prompts,
    read_subjects,
    takes_prompts,
)
from gear_dist.config.models import SamplingConfig
from gear_dist.errors import ConfigError
from gear_dist.inference.model_folder import open_model
from gear_dist.runs.classes import class_names

COLUMNS = 8
MAX_BAD_SHARE = 0.05
MODEL_HELP = "run folder, such as runs/demo, or an imported model's folder"


def add_commands(subparsers: Any) -> None:
    """Add `sample` and `reconstruct`."""
    sample = subparsers.add_parser("sample", help="generate images with averaged weights")
    sample.add_argument("model", type=path_argument, metavar="MODEL", help=MODEL_HELP)
    add_conditions(
        sample,
        "images in total, the classes or prompts in turn (default: 64, or one a prompt)",
    )
    add_sampling(sample)
    add_seed(sample)
    sample.add_argument(
        "--out",
        help="PNG to write (default: MODEL/samples.png); with --num a folder or s3://BUCKET/PREFIX",
    )
    _add_shared(sample)
    sample_bulk.add_arguments(sample)
    sample.set_defaults(run=run_sample)

    reconstruct = subparsers.add_parser(
        "reconstruct", help="show images beside their reconstructions"
    )
    reconstruct.add_argument("model", type=path_argument, metavar="MODEL", help=MODEL_HELP)
    reconstruct.add_argument(
        "--images", type=path_argument, help="folder of images (default: a run's validation corpus)"
    )
    reconstruct.add_argument(
        "--count", type=whole(1, MAX_GRID_IMAGES), default=32, help="images (default: 32)"
    )
    reconstruct.add_argument("--seed", type=whole(0, MAX_SEED), default=0, help="seed (default: 0)")
    add_bad_share(reconstruct)
    reconstruct.add_argument(
        "--out",
        type=output_file(".png"),
        help="PNG to write (default: MODEL/reconstruction.png)",
    )
    _add_shared(reconstruct)
    reconstruct.set_defaults(run=run_reconstruct)


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--columns", type=whole(1, 10_000), default=COLUMNS, help="images per row (default: 8)"
    )
    add_device(parser)


def add_sampling(parser: argparse.ArgumentParser, without: Sequence[str] = ()) -> None:
    """Add an option for each setting of sampling but some; see `sampling_from`."""
    hints = typing.get_type_hints(SamplingConfig)
    for item in dataclasses.fields(SamplingConfig):
        if item.name in without:
            continue
        kind = hints[item.name]
        options: dict[str, Any] = {"help": "default: the run's sampling." + item.name}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif typing.get_origin(kind) is typing.Literal:
            options["choices"] = typing.get_args(kind)
        else:
            options["type"] = whole() if kind is int else number()
        parser.add_argument("--" + item.name.replace("_", "-"), default=None, **options)


def add_bad_share(parser: argparse.ArgumentParser) -> None:
    """Add --max-bad-share."""
    parser.add_argument(
        "--max-bad-share",
        type=number(0, 1),
        default=MAX_BAD_SHARE,
        metavar="NUMBER",
        help="largest share of files that cannot be decoded, which are listed and left out; a "
        "single bad file stops the command only with 0 (default: %(default)s)",
    )


def sampling_from(args: argparse.Namespace, sampling: SamplingConfig) -> SamplingConfig:
    """The run's sampling settings with the command's in their place."""
    given = {f.name: getattr(args, f.name, None) for f in dataclasses.fields(SamplingConfig)}
    changes = {name: value for name, value in given.items() if value is not None}
    sampling = dataclasses.replace(sampling, **changes)
    if sampling.temperature == 0:
        print("temperature 0: the likeliest code every time; seeds change nothing", file=sys.stderr)
    return sampling


def run_sample(args: argparse.Namespace) -> int:
    """Write a grid of generated images."""
    from gear_dist.inference.pipeline import GearPipeline
    from gear_dist.report.image_grid import save_grid
    from gear_dist.training.sample_grids import NUM_SAMPLES

    bulk = sample_bulk.is_bulk(args)
    grid = None
    if not bulk and args.out is not None:
        grid = read_argument("--out", output_file(".png"), args.out)
    model = open_model(args.model)
    sampling = sampling_from(args, model.config.sampling)
    if bulk:
        of_prompts = takes_prompts(args, model)
        names = class_names(model.path)
        classes = [] if of_prompts else read_class_indices(args, model, names)
        prompts = read_prompts(args, sample_bulk.MAX_SAMPLES) if of_prompts else []
        return sample_bulk.run_bulk(
            args, model, sampling, classes=classes, names=names, prompts=prompts
        )
    subjects = read_subjects(args, model, NUM_SAMPLES)
    pair = GearPipeline.load(model, read_device(args))
    images = pair.generate(subjects.condition(pair), subjects.seeds(args.seed), sampling)
    out = grid or model.path / "samples.png"
    # Numbers of classes would only repeat themselves below the images.
    named = args.prompt or args.prompts or class_names(model.path)
    captions = [subjects.label(i) for i in range(subjects.num_images)] if named else None
    save_grid(images, out, args.columns, captions=captions)
    print(out)
    return 0


def run_reconstruct(args: argparse.Namespace) -> int:
    """Write a grid of originals over reconstructions, and print the PSNR."""
    import torch

    from gear_dist.data.first_batches import first_images
    from gear_dist.evaluation.image_quality import psnr
    from gear_dist.inference.image_files import ImageFiles, image_paths
    from gear_dist.inference.pipeline import GearPipeline
    from gear_dist.report.image_grid import pair_rows, save_grid

    model = open_model(args.model)
    config = model.config
    pair = GearPipeline.load(model, read_device(args))
    if args.images:
        paths = image_paths(args.images)[: args.count]
        files = ImageFiles(paths, config.data, args.max_bad_share)
        images = torch.stack([image for _, image in files])
    elif config.data.train or config.data.validation:
        images = first_images(config.data, args.count)
    else:
        raise ConfigError(f"{model.path} names no corpus: give --images FOLDER")
    rebuilt = pair.reconstruct(images)
    out = args.out or model.path / "reconstruction.png"
    save_grid(pair_rows(images.numpy(), rebuilt.numpy(), args.columns), out, args.columns)
    print(f"{out}  ({len(images)} images, PSNR {psnr(images, rebuilt).mean():.2f} dB)")
    return 0
