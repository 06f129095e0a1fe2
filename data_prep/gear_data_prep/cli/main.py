"""The sharding commands of `gear-dist`, also as `python -m gear_data_prep COMMAND ...`."""

import argparse
import time
from typing import Any

from gear_data_prep.cli.corpus import add_corpus_commands
from gear_data_prep.cli.shard import add_option, add_shard
from gear_dist.cli.arguments import MAX_SEED, path_argument, whole
from gear_dist.config.checks import MAX_THREADS


def add_commands(subparsers: Any) -> None:
    """Add `shard`, `verify`, `repair`, `stats`, `preview` and `sample-corpus`."""
    add_shard(subparsers)
    add_corpus_commands(subparsers)
    _add_sample_corpus(subparsers)


def _add_sample_corpus(subparsers: Any) -> None:
    text = "write the procedural sample corpus, an ImageFolder tree"
    parser = subparsers.add_parser("sample-corpus", help=text, description=text)
    parser.add_argument("folder", type=path_argument, metavar="FOLDER")
    for name, kind, default, text in (
        ("--size", whole(1, 65_536), 32, "side of the images, pixels"),
        ("--train", whole(), 12_000, "training images"),
        ("--validation", whole(), 3_000, "validation images"),
        ("--seed", whole(0, MAX_SEED), 0, "seed of the images"),
        ("--workers", whole(1, MAX_THREADS), 2, "processes"),
    ):
        add_option(parser, name, kind, default, text)
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a sample corpus of other settings"
    )
    parser.set_defaults(run=_sample_corpus)


def _sample_corpus(args: argparse.Namespace) -> int:
    from gear_data_prep.demo.procedural_corpus import (
        CLASSES,
        SampleCorpusSettings,
        make_sample_corpus,
    )

    settings = SampleCorpusSettings(args.size, args.train, args.validation, args.seed)
    start = time.monotonic()
    made = make_sample_corpus(args.folder, settings, workers=args.workers, overwrite=args.overwrite)
    counts = f"{args.train:,} + {args.validation:,} images of {len(CLASSES)} classes"
    how = f"written in {time.monotonic() - start:.1f} s" if made else "there already, reused"
    print(f"sample corpus: {counts} in {args.folder}: {how}", flush=True)
    return 0
