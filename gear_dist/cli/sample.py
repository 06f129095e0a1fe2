"""Commands that use trained weights: `sample` and `reconstruct`."""

import argparse
import csv
import dataclasses
import sys
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

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
from gear_dist.config.models import SamplingConfig
from gear_dist.errors import ConfigError
from gear_dist.inference.model_folder import ModelFolder, open_model
from gear_dist.inference.prompt_files import read_prompt_file
from gear_dist.inference.seeds import MAX_SAMPLE_SEED, derive_seeds, prompt_seeds
from gear_dist.runs.classes import SHOWN_NAMES, class_index, class_names

if TYPE_CHECKING:
    from gear_dist.inference.pipeline import GearPipeline
    from gear_dist.models.generator import Condition

COLUMNS = 8
MAX_BAD_SHARE = 0.05
MODEL_HELP = "run folder, such as runs/demo, or an imported model's folder"


def add_commands(subparsers: Any) -> None:
    """Add `sample` and `reconstruct`."""
    sample = subparsers.add_parser("sample", help="generate images with averaged weights")
    sample.add_argument("model", type=path_argument, metavar="MODEL", help=MODEL_HELP)
    sample.add_argument(
        "--classes",
        default="",
        help="names or indices, comma-separated, a name with commas in double quotes (default: "
        "all classes of the corpus)",
    )
    sample.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="of a text-to-image generator: what the image shows; may be given several times",
    )
    sample.add_argument(
        "--prompts",
        type=path_argument,
        metavar="FILE",
        help="of a text-to-image generator: a prompt a line, UTF-8; blank lines are left out",
    )
    sample.add_argument(
        "--count",
        type=whole(1, MAX_GRID_IMAGES),
        help="images in total, the classes or prompts in turn (default: 64, or one a prompt)",
    )
    add_sampling(sample)
    sample.add_argument(
        "--seed",
        type=whole(0, MAX_SAMPLE_SEED),
        default=0,
        help="of the first image, from which the others' are derived (default: 0)",
    )
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


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add an option for each setting of sampling; see `sampling_from`."""
    hints = typing.get_type_hints(SamplingConfig)
    for item in dataclasses.fields(SamplingConfig):
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


def parse_classes(text: str, num_classes: int, names: list[str] | None = None) -> list[int]:
    """Classes by name or by index, comma-separated; empty: all that the corpus has.

    A name wins over an index that looks like it. A name with commas stands alone or in double
    quotes: `tench, Tinca tinca`, or `"tench, Tinca tinca",goldfish`.

    Raises:
        ConfigError: a class that the generator does not have.
    """
    names = names or []
    if not text:
        # Of more classes than the corpus has, the rest was never trained.
        return list(range(len(names) or num_classes))
    words = [text] if text in names else next(csv.reader([text], skipinitialspace=True))
    return [class_index(word.strip(), num_classes, names, "--classes") for word in words]


def sampling_from(args: argparse.Namespace, sampling: SamplingConfig) -> SamplingConfig:
    """The run's sampling settings with the command's in their place."""
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(SamplingConfig)}
    changes = {name: value for name, value in given.items() if value is not None}
    sampling = dataclasses.replace(sampling, **changes)
    if sampling.temperature == 0:
        print("temperature 0: the likeliest code every time; seeds change nothing", file=sys.stderr)
    return sampling


def _class_name(index: int, names: list[str]) -> str:
    return names[index] if index < len(names) else f"class {index}"


def _warn_of_untrained(classes: list[int], names: list[str]) -> None:
    """The generator may have more classes than the corpus: those stay as they were initialized."""
    untrained = sorted({index for index in classes if names and index >= len(names)})
    if untrained:
        shown = ", ".join(map(str, untrained[:SHOWN_NAMES]))
        print(
            f"gear-dist: --classes {shown}: never trained, the run's corpus has "
            f"{len(names)} classes",
            file=sys.stderr,
        )


def run_sample(args: argparse.Namespace) -> int:
    """Write a grid of generated images."""
    from gear_dist.inference.pipeline import GearPipeline
    from gear_dist.report.image_grid import save_grid

    bulk = sample_bulk.is_bulk(args)
    grid = None
    if not bulk and args.out is not None:
        grid = read_argument("--out", output_file(".png"), args.out)
    model = open_model(args.model)
    sampling = sampling_from(args, model.config.sampling)
    takes_prompts = _takes_prompts(args, model)
    if bulk:
        names = class_names(model.path)
        classes = [] if takes_prompts else _read_class_indices(args, model, names)
        prompts = _prompts(args, sample_bulk.MAX_SAMPLES) if takes_prompts else []
        return sample_bulk.run_bulk(
            args, model, sampling, classes=classes, names=names, prompts=prompts
        )
    wanted = _read_prompts(args, model) if takes_prompts else _read_classes(args, model)
    pair = GearPipeline.load(model, read_device(args))
    condition = wanted.condition(pair)
    images = pair.generate(condition, wanted.seeds, sampling)
    out = grid or model.path / "samples.png"
    save_grid(images, out, args.columns, captions=wanted.captions)
    print(out)
    return 0


class _Wanted(NamedTuple):
    """Images that were asked for."""

    condition: "Callable[[GearPipeline], Condition]"
    seeds: list[int]
    captions: list[str] | None


def _takes_prompts(args: argparse.Namespace, model: ModelFolder) -> bool:
    """Whether the model generates for prompts.

    Raises:
        ConfigError: it was asked for the other kind, or for no prompt.
    """
    asked = args.prompts is not None or bool(args.prompt)
    if model.config.generator.condition == "class":
        if asked:
            raise ConfigError(
                f"{model.path} generates images of classes, not of prompts: use --classes"
            )
        return False
    if args.classes:
        raise ConfigError(
            f"--classes {args.classes}: {model.path} generates images of prompts: use --prompt or "
            "--prompts"
        )
    if not asked:
        raise ConfigError(
            f"{model.path} generates images of prompts: give --prompt TEXT, or --prompts FILE"
        )
    return True


def _prompts(args: argparse.Namespace, most: int) -> list[str]:
    prompts = list(args.prompt)
    return prompts + (read_prompt_file(args.prompts, most=most) if args.prompts else [])


def _read_prompts(args: argparse.Namespace, model: ModelFolder) -> _Wanted:
    prompts = _prompts(args, MAX_GRID_IMAGES)
    count = args.count or len(prompts)
    prompts = [prompts[i % len(prompts)] for i in range(count)]
    seeds = prompt_seeds(args.seed, prompts)
    return _Wanted(lambda pair: pair.read_prompts(prompts), seeds, prompts)


def _read_class_indices(
    args: argparse.Namespace, model: ModelFolder, names: list[str]
) -> list[int]:
    classes = parse_classes(args.classes, model.config.generator.num_classes, names)
    _warn_of_untrained(classes, names)
    return classes


def _read_classes(args: argparse.Namespace, model: ModelFolder) -> _Wanted:
    import torch

    from gear_dist.models.generator import ClassCondition
    from gear_dist.training.conditions import grid_labels
    from gear_dist.training.sample_grids import NUM_SAMPLES

    names = class_names(model.path)
    classes = _read_class_indices(args, model, names)
    labels = torch.tensor(classes)[grid_labels(len(classes), args.count or NUM_SAMPLES)]
    captions = [_class_name(i, names) for i in labels.tolist()] if names else None
    seeds = derive_seeds(args.seed, range(len(labels)))
    return _Wanted(lambda pair: ClassCondition(labels), seeds, captions)


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
