"""`gear-dist quickstart`, which `make train` calls."""

import argparse
from typing import Any

from gear_dist.cli.arguments import MAX_SEED, path_argument, whole


def add_commands(subparsers: Any) -> None:
    """Add `quickstart` to the command line."""
    parser = subparsers.add_parser(
        "quickstart",
        help="all of it on one machine: store, shards, teacher, training, report",
        description="Start the embedded object store, make or take images, shard them, train a "
        "teacher, train the pair, evaluate it and write a sample grid and a report. Run again, it "
        "reuses what is there and resumes where it stopped.",
    )
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="settings that replace the file's"
    )
    option = parser.add_argument
    option(
        "--data",
        type=path_argument,
        metavar="FOLDER",
        help="your ImageFolder (default: made-up images)",
    )
    option(
        "--config",
        dest="configs",
        type=path_argument,
        action="append",
        help="run file, several times for several parts (default: configs/demo.yaml)",
    )
    option("--run-name", default="", help="run folder under runs/ (default: by data and seed)")
    option("--seed", type=whole(0, MAX_SEED), default=0, help="seed of the run (default: 0)")
    option("--verbose", action="store_true", help="show Ray's and the workers' own output too")
    parser.set_defaults(run=_quickstart)


def _quickstart(args: argparse.Namespace) -> int:
    from gear_cluster.demo.quickstart import quickstart, request_from

    return quickstart(request_from(args, args.overrides))
