"""`gear-dist sample --num N`: many samples as tars of PNG and ADM's npz."""

import argparse
import os
import sys

from gear_dist.cli.arguments import read_device, whole
from gear_dist.config.models import SamplingConfig
from gear_dist.errors import ConfigError
from gear_dist.inference.model_folder import ModelFolder

MAX_SAMPLES = 10**8
"""What a sample's number in its tar has room for."""
PER_CLASS = 50
_MOST_PER_TAR, _FEWEST_PER_TAR, _TARS = 1000, 50, 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of bulk sampling to `sample`."""
    bulk = parser.add_argument_group(
        "many samples", "tars of PNG for webdataset, and the .npz of ADM's evaluator, in --out"
    )
    count = bulk.add_mutually_exclusive_group()
    count.add_argument(
        "--num", type=whole(1, MAX_SAMPLES), help="samples in all, in place of a grid"
    )
    count.add_argument(
        "--per-class",
        type=whole(1, MAX_SAMPLES),
        nargs="?",
        const=PER_CLASS,
        metavar="N",
        help=f"so many samples of each class, in place of a grid (without a number: {PER_CLASS})",
    )
    bulk.add_argument(
        "--class-rule",
        choices=("per-class", "random"),
        default="per-class",
        help="per-class: all classes equally often; random: a class drawn for each sample "
        "(default: per-class)",
    )
    bulk.add_argument(
        "--samples-per-tar",
        type=whole(1, MAX_SAMPLES),
        metavar="N",
        help=f"default: a {_TARS}th of all, from {_FEWEST_PER_TAR} to {_MOST_PER_TAR:,}",
    )
    bulk.add_argument(
        "--npz",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write samples.npz (default)",
    )
    bulk.add_argument(
        "--workers",
        type=whole(1, 1024),
        help="processes, or Ray tasks at a time (default: one for each GPU, else 1); on a CPU each "
        "has one thread",
    )
    bulk.add_argument(
        "--ray",
        action="store_true",
        help="run on Ray: the cluster of RAY_ADDRESS, else a local one",
    )
    bulk.add_argument("--endpoint", default="", help="S3 endpoint of an s3:// --out")


def is_bulk(args: argparse.Namespace) -> bool:
    """Whether the command asks for many samples; else for a grid.

    Raises:
        ConfigError: options of the one with the other.
    """
    bulk = args.num is not None or args.per_class is not None
    if bulk and args.count is not None:
        raise ConfigError("--count is of a grid: leave it out, --num says how many samples")
    if not bulk:
        given = [
            name
            for name, value in (
                ("--class-rule random", args.class_rule != "per-class"),
                ("--samples-per-tar", args.samples_per_tar),
                ("--no-npz", not args.npz),
                ("--workers", args.workers),
                ("--ray", args.ray),
                ("--endpoint", args.endpoint),
            )
            if value
        ]
        if given:
            raise ConfigError(f"{given[0]} is of many samples: give --num N or --per-class as well")
    return bulk


def run_bulk(
    args: argparse.Namespace,
    model: ModelFolder,
    sampling: SamplingConfig,
    *,
    classes: list[int],
    names: list[str],
    prompts: list[str],
) -> int:
    """Make the samples, or those that are not there yet."""
    import torch

    from gear_dist.inference.bulk.plan import BulkPlan, lasting_settings
    from gear_dist.inference.bulk.run import generate_bulk
    from gear_dist.inference.bulk.tar_task import decoding_step, hash_weights
    from gear_dist.inference.decoding.guidance import check_sampling
    from gear_dist.storage.open import open_storage

    if not args.out:
        raise ConfigError("--num: give --out, a folder or s3://BUCKET/PREFIX")
    if prompts and (args.per_class or args.class_rule != "per-class"):
        raise ConfigError(
            "--per-class and --class-rule are of classes: give --num, the prompts take turns"
        )
    check_sampling(sampling, model.config.generator, model.config.tokenizer.codebook_size)
    storage = open_storage(args.out, args.endpoint)
    device = read_device(args).type
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    num = args.num or args.per_class * len(classes)
    if num > MAX_SAMPLES:
        raise ConfigError(f"--per-class {args.per_class}: {num:,} samples; at most {MAX_SAMPLES:,}")
    step = decoding_step(device)
    plan = BulkPlan(
        weights=hash_weights(model),
        num=num,
        class_rule=args.class_rule,
        classes=tuple(classes),
        seed=args.seed,
        sampling=lasting_settings(sampling, device, step),
        image_size=model.config.data.image_size,
        samples_per_tar=args.samples_per_tar or default_samples_per_tar(num),
        device=device,
        prompts=tuple(prompts),
        step=step,
    )
    result = generate_bulk(
        storage,
        os.path.abspath(model.path),
        plan,
        tuple(names),
        batch=sampling.batch,
        workers=args.workers or max(1, gpus),
        on_ray=args.ray,
        gpus=gpus,
        npz=args.npz,
    )
    speed = result.num_made / max(result.seconds, 1e-6)
    print(f"{result.num_made:,} of {num:,} samples made, {speed:,.1f} a second", file=sys.stderr)
    print(args.out)
    return 0


def default_samples_per_tar(num: int) -> int:
    """By the number of samples alone: bytes must not depend on who makes them."""
    return min(_MOST_PER_TAR, max(_FEWEST_PER_TAR, -(-num // _TARS)))
