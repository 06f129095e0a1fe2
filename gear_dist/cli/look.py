"""`gear-dist look guidance|interpolation|neighbours`: contact sheets of a model's samples."""

import argparse
import dataclasses
import typing
from typing import TYPE_CHECKING, Any

from gear_dist.cli.arguments import (
    add_device,
    number_list,
    output_file,
    path_argument,
    read_device,
    whole,
)
from gear_dist.cli.conditions import add_conditions, add_seed, read_subjects
from gear_dist.cli.sample import MODEL_HELP, add_bad_share, add_sampling, sampling_from
from gear_dist.config.models import TeacherConfig
from gear_dist.errors import ConfigError
from gear_dist.inference.model_folder import ModelFolder, open_model
from gear_dist.inference.seeds import MAX_SAMPLE_SEED

if TYPE_CHECKING:
    from gear_dist.sheets.image_source import ImageSource
    from gear_dist.sheets.sheet import Maker, Sheet

GUIDANCES = (1.0, 1.5, 2.0, 4.0)
TEMPERATURES = (0.7, 0.85, 1.0, 1.15)
STEPS, ROWS, IN_CELL, SAMPLES = 7, 4, 4, 8
_MOST_VALUES, _MOST_SAMPLES, _MOST_NEIGHBOURS = 20, 10_000, 100
_BATCH, _HELD_OUT = 64, 1000


def add_commands(subparsers: Any) -> None:
    """Add `look` and its sheets."""
    look = subparsers.add_parser(
        "look",
        help="contact sheets: guidance and temperature, interpolation, nearest training images",
        description="Write a labelled PNG, and beside it a .sheet.json with the place, the "
        "settings and the command of every image.",
    )
    sheets = look.add_subparsers(dest="sheet", required=True, metavar="SHEET")
    _add_guidance(sheets)
    _add_interpolation(sheets)
    _add_neighbours(sheets)


def _add_sheet(sheets: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser = sheets.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("model", type=path_argument, metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--out", type=output_file(".png"), help=f"PNG to write (default: MODEL/look-{name}.png)"
    )
    add_device(parser)
    return parser


def _add_guidance(sheets: Any) -> None:
    parser = _add_sheet(
        sheets, "guidance", "guidance by temperature, with the same seeds in every cell"
    )
    for name, values, text in (
        ("guidance", GUIDANCES, "rows"),
        ("temperature", TEMPERATURES, "columns"),
    ):
        parser.add_argument(
            f"--{name}",
            dest=f"{name}_values",
            type=number_list(most=_MOST_VALUES),
            metavar="LIST",
            help=f"{text}, comma-separated (default: {','.join(f'{v:g}' for v in values)})",
        )
    add_conditions(parser, f"images a cell (default: {IN_CELL}, or one a prompt)")
    add_seed(parser)
    add_sampling(parser, without=("guidance", "temperature"))
    parser.set_defaults(run=run_guidance)


def _add_interpolation(sheets: Any) -> None:
    parser = _add_sheet(
        sheets,
        "interpolation",
        "between two classes or prompts, and between the noise of two seeds",
    )
    add_conditions(parser)
    add_seed(parser)
    parser.add_argument(
        "--to-seed",
        type=whole(0, MAX_SAMPLE_SEED),
        help="noise goes from that of --seed to that of this one, down the rows; with one class or "
        "prompt along a single row",
    )
    parser.add_argument(
        "--steps",
        type=whole(2, 100),
        default=STEPS,
        help="images a row, ends included (default: %(default)s)",
    )
    parser.add_argument(
        "--rows",
        type=whole(1, 100),
        help=f"seeds, or with --to-seed steps between the two (default: {ROWS})",
    )
    add_sampling(parser)
    parser.set_defaults(run=run_interpolation)


def _add_neighbours(sheets: Any) -> None:
    parser = _add_sheet(
        sheets,
        "neighbours",
        "samples beside their nearest training images, with held-out images to compare",
    )
    where = "a corpus of `gear-dist shard`, tars, or a folder of images, also on S3"
    parser.add_argument("--corpus", help=f"training images: {where} (default: the run's)")
    parser.add_argument(
        "--held-out", help=f"images that were not trained on: {where} (default: the run's)"
    )
    parser.add_argument(
        "--samples",
        metavar="ADDRESS",
        help=f"images to look at, such as what `sample --num` wrote: {where} (default: generated)",
    )
    parser.add_argument("--endpoint", help="S3 endpoint of s3:// addresses (default: the run's)")
    parser.add_argument(
        "--features",
        choices=("tokenizer", "teacher"),
        default="tokenizer",
        help="what images are compared by: the tokenizer's encoder, or the run's teacher (default: "
        "tokenizer)",
    )
    families = typing.get_args(typing.get_type_hints(TeacherConfig)["name"])
    parser.add_argument(
        "--teacher", choices=families, help="the teacher's family (default: the run's teacher.name)"
    )
    parser.add_argument(
        "--teacher-path",
        metavar="PATH",
        help="its folder, file or hub name (default: the run's teacher.path)",
    )
    parser.add_argument(
        "-k",
        "--neighbours",
        type=whole(1, _MOST_NEIGHBOURS),
        default=4,
        metavar="K",
        help="training images beside each sample (default: %(default)s)",
    )
    parser.add_argument(
        "--rows", type=whole(1, _MOST_SAMPLES), default=16, help="samples shown (default: 16)"
    )
    parser.add_argument(
        "--max-held-out",
        type=whole(2),
        default=_HELD_OUT,
        metavar="N",
        help="held-out images that are compared, the first ones (default: %(default)s)",
    )
    parser.add_argument(
        "--image-batch",
        type=whole(1, 4096),
        default=_BATCH,
        metavar="N",
        help="images through the features' network at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--reconstruct",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="held-out images go through the tokenizer before they are compared, as samples come "
        "out of it (default)",
    )
    add_conditions(parser, f"samples (default: {SAMPLES}, or one a prompt)")
    add_seed(parser)
    add_sampling(parser)
    add_bad_share(parser)
    parser.set_defaults(run=run_neighbours)


def _maker(args: argparse.Namespace, model: ModelFolder) -> "Maker":
    from gear_dist.inference.pipeline import GearPipeline
    from gear_dist.sheets.sheet import Maker

    sampling = sampling_from(args, model.config.sampling)
    return Maker(GearPipeline.load(model, read_device(args)), str(model.path), sampling)


def _save(args: argparse.Namespace, model: ModelFolder, maker: "Maker", sheet: "Sheet") -> None:
    from gear_dist.inference.bulk.plan import short_hash
    from gear_dist.inference.bulk.tar_task import NETWORKS, hash_file
    from gear_dist.runs.environment import package_versions
    from gear_dist.sheets.drawing import save_sheet

    out = args.out or model.path / f"look-{args.sheet}.png"
    hashes = {name: hash_file(model.weights[name]) for name in NETWORKS if name in model.weights}
    facts = {
        "model": str(model.path),
        "checkpoint": short_hash(hashes),
        "device": maker.pair.device.type,
        "gear_dist": package_versions(("gear-dist",))["gear-dist"] or "",
    }
    beside = save_sheet(sheet, out, facts)
    print(out)
    print(beside)


def run_guidance(args: argparse.Namespace) -> int:
    """Write a sheet of guidance by temperature."""
    from gear_dist.sheets.guidance import guidance_sheet

    model = open_model(args.model)
    subjects = read_subjects(args, model, IN_CELL)
    # Without a null class there is one guidance.
    usual = GUIDANCES if model.config.generator.class_dropout else (1.0,)
    maker = _maker(args, model)
    sheet = guidance_sheet(
        maker,
        subjects,
        args.seed,
        guidances=args.guidance_values or usual,
        temperatures=args.temperature_values or TEMPERATURES,
    )
    _save(args, model, maker, sheet)
    return 0


def run_interpolation(args: argparse.Namespace) -> int:
    """Write a sheet of interpolations."""
    from gear_dist.sheets.interpolation import Path, interpolation_sheet

    model = open_model(args.model)
    if not (args.classes or args.prompt or args.prompts):
        raise ConfigError("name two classes (--classes A,B), or two prompts (--prompt, twice)")
    subjects = read_subjects(args, model)
    if args.rows is not None and subjects.num_images == 1:
        raise ConfigError(f"--rows {args.rows}: one class or prompt has one row: leave it out")
    if args.rows == 1 and args.to_seed is not None:
        raise ConfigError("--rows 1: from --seed to --to-seed takes at least 2")
    path = Path(args.steps, args.rows or ROWS, args.seed, args.to_seed)
    path.check(subjects)
    maker = _maker(args, model)
    _save(args, model, maker, interpolation_sheet(maker, subjects, path))
    return 0


def run_neighbours(args: argparse.Namespace) -> int:
    """Write a sheet of nearest training images, and print what it says."""
    from gear_dist.sheets.features import FEATURES
    from gear_dist.sheets.neighbours import (
        Search,
        check_apart,
        describe,
        find_neighbours,
        neighbours_sheet,
    )
    from gear_dist.sheets.samples import generate_samples, read_samples

    model = open_model(args.model)
    data = model.config.data
    training = _open_images(args, model, "--corpus", args.corpus or data.train)
    held_out = _open_images(args, model, "--held-out", args.held_out or data.validation)
    check_apart(training, held_out)
    if args.samples and (args.classes or args.prompt or args.prompts):
        raise ConfigError("--samples: are there already: leave --classes and --prompt out")
    chosen = _open_images(args, model, "--samples", args.samples) if args.samples else None
    subjects = None if chosen else read_subjects(args, model, SAMPLES)
    maker = _maker(args, model)
    search = Search(
        FEATURES[args.features](maker.pair, _teacher_section(args, model)),
        args.neighbours,
        mirrored=data.flip > 0,
        max_held_out=args.max_held_out,
        batch=args.image_batch,
        prepare=maker.pair.reconstruct if args.reconstruct else lambda pixels: pixels,
    )
    search.check(training)
    if chosen:
        samples = read_samples(chosen, args.count or SAMPLES, args.image_batch)
    else:
        assert subjects is not None
        samples = generate_samples(maker, subjects, args.seed)
    found = find_neighbours(samples.pixels, training, held_out, search)
    _save(args, model, maker, neighbours_sheet(samples, found, search, args.rows))
    for line in describe(found):
        print(line)
    return 0


def _teacher_section(args: argparse.Namespace, model: ModelFolder) -> TeacherConfig:
    section = model.config.teacher
    if args.features != "teacher" and (args.teacher or args.teacher_path):
        raise ConfigError("--teacher and --teacher-path: give --features teacher as well")
    name, path = args.teacher or section.name, args.teacher_path or section.path
    return dataclasses.replace(section, name=name, path=path)


def _open_images(
    args: argparse.Namespace, model: ModelFolder, option: str, address: str
) -> "ImageSource":
    from gear_dist.sheets.image_source import ImageSource

    if not address:
        raise ConfigError(f"{model.path} names no such corpus: give {option} ADDRESS")
    return ImageSource(
        address,
        model.config.data,
        option=option,
        endpoint=model.config.data.endpoint if args.endpoint is None else args.endpoint,
        max_bad_share=args.max_bad_share,
    )
