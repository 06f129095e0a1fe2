"""`gear-dist quickstart`, which `make train` calls."""

import argparse
from typing import Any

from gear_dist.cli.arguments import MAX_SEED, path_argument, whole


def add_commands(subparsers: Any) -> None:
    """Add `quickstart` to the command line."""
    parser = subparsers.add_parser(
        "quickstart",
        help="the whole demonstration on one machine: store, shards, teacher, training, report",
        description="Start the embedded object store, generate or read images, shard them, train a "
        "teacher, train the pair, evaluate it and write a sample grid and a report. Run again, it "
        "reuses what is there and resumes where it stopped.",
    )
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="settings that override the file"
    )
    option = parser.add_argument
    option(
        "--data",
        type=path_argument,
        metavar="FOLDER",
        help="your ImageFolder (default: procedural images)",
    )
    option(
        "--config",
        dest="configs",
        type=path_argument,
        action="append",
        help="run file; repeat for several (default: configs/demo.yaml)",
    )
    option(
        "--run-name",
        default="",
        help="name of the run folder in runs/ (default: from data and seed)",
    )
    option("--seed", type=whole(0, MAX_SEED), default=0, help="seed of the run (default: 0)")
    option("--verbose", action="store_true", help="also show the output of Ray and of the workers")
    parser.set_defaults(run=_quickstart)


def _quickstart(args: argparse.Namespace) -> int:
    from gear_cluster.demo.quickstart import quickstart, request_from

    return quickstart(request_from(args, args.overrides))
