"""What images a command is to generate: classes or prompts, and the seed of each."""

import argparse
import csv
import sys
from typing import TYPE_CHECKING

from gear_dist.cli.arguments import MAX_GRID_IMAGES, path_argument, whole
from gear_dist.errors import ConfigError
from gear_dist.inference.model_folder import ModelFolder
from gear_dist.inference.prompt_files import read_prompt_file
from gear_dist.inference.seeds import MAX_SAMPLE_SEED
from gear_dist.runs.classes import SHOWN_NAMES, class_index, class_names

if TYPE_CHECKING:
    from gear_dist.inference.subjects import Subjects


def add_conditions(parser: argparse.ArgumentParser, count: str = "") -> None:
    """Add --classes, --prompt, --prompts and --count; see `read_subjects`.

    Args:
        parser: of the command.
        count: help of --count; empty: there is none.
    """
    parser.add_argument(
        "--classes",
        default="",
        help="names or indices, comma-separated, a name with commas in double quotes (default: "
        "all classes of the corpus)",
    )
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="of a text-to-image generator: what the image shows; may be given several times",
    )
    parser.add_argument(
        "--prompts",
        type=path_argument,
        metavar="FILE",
        help="of a text-to-image generator: a prompt a line, UTF-8; blank lines are left out",
    )
    if count:
        parser.add_argument("--count", type=whole(1, MAX_GRID_IMAGES), help=count)
    else:
        parser.set_defaults(count=None)


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Add --seed."""
    parser.add_argument(
        "--seed",
        type=whole(0, MAX_SAMPLE_SEED),
        default=0,
        help="of the first image, from which the others' are derived (default: 0)",
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


def takes_prompts(args: argparse.Namespace, model: ModelFolder) -> bool:
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


def read_prompts(args: argparse.Namespace, most: int) -> list[str]:
    """Prompts of --prompt, then of --prompts.

    Raises:
        DataError: the file cannot be read, or has none or too many.
    """
    prompts = list(args.prompt)
    return prompts + (read_prompt_file(args.prompts, most=most) if args.prompts else [])


def read_class_indices(args: argparse.Namespace, model: ModelFolder, names: list[str]) -> list[int]:
    """Classes of --classes; warns of those that were never trained.

    Raises:
        ConfigError: a class that the generator does not have.
    """
    classes = parse_classes(args.classes, model.config.generator.num_classes, names)
    _warn_of_untrained(classes, names)
    return classes


def read_subjects(
    args: argparse.Namespace, model: ModelFolder, num_of_classes: int | None = None
) -> "Subjects":
    """What each image of a sheet or grid is to show.

    Args:
        args: of `add_conditions`.
        model: whose generator it is.
        num_of_classes: images where no number is asked for, of classes; None: one a class. Of
            prompts there is one each.

    Raises:
        ConfigError: an unknown class, or what this generator is not conditioned on.
    """
    from gear_dist.inference.subjects import ClassSubjects, PromptSubjects
    from gear_dist.training.conditions import grid_labels

    if takes_prompts(args, model):
        prompts = read_prompts(args, MAX_GRID_IMAGES)
        count = args.count or len(prompts)
        return PromptSubjects(tuple(prompts[i % len(prompts)] for i in range(count)))
    names = class_names(model.path)
    classes = read_class_indices(args, model, names)
    places = grid_labels(len(classes), args.count or num_of_classes or len(classes))
    return ClassSubjects(tuple(classes[place] for place in places.tolist()), tuple(names))
