"""`gear-dist shard` and `gear-dist sample-corpus`, also as `python -m gear_data_prep`."""

import argparse
import os
import time
from pathlib import Path
from typing import Any

from gear_dist.errors import ConfigError

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def add_commands(subparsers: Any) -> None:
    """Add `shard` and `sample-corpus` to the command line."""
    _add_shard(subparsers)
    _add_sample_corpus(subparsers)


def _add_shard(subparsers: Any) -> None:
    text = "an ImageFolder tree to shards with a manifest, on a folder or S3"
    parser = subparsers.add_parser("shard", help=text, description=_SHARD_TEXT)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="ImageFolder tree")
    parser.add_argument("destination", metavar="DESTINATION", help="s3://BUCKET/PREFIX or a folder")
    for name, kind, default, text in (
        ("--endpoint", str, "", "S3 endpoint; empty: AWS_ENDPOINT_URL, else AWS"),
        ("--shard-samples", int, 1000, "most samples of a shard"),
        ("--shard-bytes", str, "256M", "most bytes of a shard, with K, M or G"),
        ("--seed", int, 0, "seed of the order"),
        ("--validation-share", float, 0.1, "share held out where SOURCE has no val folder"),
        ("--max-pixels", int, 64_000_000, "images with more are bad"),
        ("--max-bad-share", float, 0.01, "a larger share of bad images stops it"),
        ("--workers", int, os.cpu_count() or 1, "processes"),
    ):
        _add_option(parser, name, kind, default, text)
    parser.add_argument("--overwrite", action="store_true", help="replace a corpus of another plan")
    parser.set_defaults(run=_shard)


def _add_option(
    parser: argparse.ArgumentParser, name: str, kind: type, default: object, text: str
) -> None:
    metavar = {int: "N", float: "SHARE", str: "TEXT"}[kind]
    parser.add_argument(
        name, type=kind, default=default, metavar=metavar, help=f"{text} (default: %(default)r)"
    )


_SHARD_TEXT = (
    "Shards SOURCE/{train,val}/CLASS/NAME.jpg (or SOURCE/CLASS/NAME.jpg, split by "
    "--validation-share) into DESTINATION/train and DESTINATION/validation. Images are copied as "
    "they are; NAME.txt is the caption, NAME.json the attributes. Run again after an interruption "
    "it continues; a finished corpus is reused."
)


def _add_sample_corpus(subparsers: Any) -> None:
    text = "write the procedural sample corpus, an ImageFolder tree"
    parser = subparsers.add_parser("sample-corpus", help=text, description=text)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    for name, default, text in (
        ("--size", 32, "side of the images, pixels"),
        ("--train", 12_000, "training images"),
        ("--validation", 3_000, "validation images"),
        ("--seed", 0, "seed of the images"),
        ("--workers", 2, "processes"),
    ):
        _add_option(parser, name, int, default, text)
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a sample corpus of other settings"
    )
    parser.set_defaults(run=_sample_corpus)


def _sample_corpus(args: argparse.Namespace) -> int:
    from gear_data_prep.sample_corpus import CLASSES, CorpusSettings, make_corpus

    settings = CorpusSettings(args.size, args.train, args.validation, args.seed)
    start = time.monotonic()
    made = make_corpus(args.folder, settings, workers=args.workers, overwrite=args.overwrite)
    counts = f"{args.train:,} + {args.validation:,} images of {len(CLASSES)} classes"
    how = f"written in {time.monotonic() - start:.1f} s" if made else "there already, reused"
    print(f"sample corpus: {counts} in {args.folder}: {how}", flush=True)
    return 0


def _shard(args: argparse.Namespace) -> int:
    from gear_data_prep.corpus import CorpusResult, make_corpus
    from gear_data_prep.sources import read_image_folder
    from gear_dist.storage import open_storage

    settings = _corpus_settings(args)
    source = read_image_folder(args.source, args.validation_share)
    if source.num_ignored:
        print(f"shard: {source.num_ignored:,} files are no images: left out", flush=True)
    for split in source.splits:
        storage = open_storage(f"{args.destination.rstrip('/')}/{split}", args.endpoint)
        result: CorpusResult = make_corpus(storage, source, split, settings)
        facts = result.facts
        counts = f"{facts.num_samples:,} images in {facts.num_shards:,} shards"
        bad = f", {result.num_bad:,} bad ones left out" if result.num_bad else ""
        rate = facts.num_samples / max(result.seconds, 1e-6)
        how = f"{result.seconds:.1f} s, {rate:,.0f} images/s"
        how = "finished before, reused" if result.reused else how
        print(f"shard {split}: {counts}{bad}: {storage.address} ({how})", flush=True)
    return 0


def _corpus_settings(args: argparse.Namespace) -> Any:
    from gear_data_prep.corpus import CorpusSettings
    from gear_data_prep.plan import PlanSettings

    shard_bytes = _parse_bytes(args.shard_bytes)
    for name, value, low in (
        ("shard-samples", args.shard_samples, 1),
        ("shard-bytes", shard_bytes, 1),
        ("max-pixels", args.max_pixels, 1),
        ("workers", args.workers, 1),
        ("seed", args.seed, 0),
    ):
        if value < low:
            raise ConfigError(f"--{name} {value} is too small: use at least {low}")
    for name, share in (
        ("validation-share", args.validation_share),
        ("max-bad-share", args.max_bad_share),
    ):
        if not 0 <= share <= 1:
            raise ConfigError(f"--{name} {share} is out of range: use 0 to 1")
    plan = PlanSettings(args.shard_samples, shard_bytes, args.seed, args.max_pixels)
    return CorpusSettings(plan, args.max_bad_share, args.workers, args.overwrite)


def _parse_bytes(text: str) -> int:
    unit = _UNITS.get(text[-1:].upper(), 1)
    number = text[:-1] if unit > 1 else text
    if not number.isdigit():
        raise ConfigError(f"--shard-bytes {text}: use a number with K, M or G, such as 256M")
    return int(number) * unit
