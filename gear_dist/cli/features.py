"""The `features` command: the text encoder's features of all captions of a run, written once."""

import argparse
import sys
from typing import Any

from gear_dist.cli.config_arguments import add_config_words
from gear_dist.errors import EXIT_DONE
from gear_dist.formatting import format_bytes, format_duration
from gear_dist.progress import Pace, StatusLine

_EVERY_S = 5.0


def add_commands(subparsers: Any) -> None:
    """Add `features`."""
    parser = subparsers.add_parser(
        "features",
        help="write the text encoder's features of all captions of a run (data.caption_features)",
        description="Write the features of all captions that a run can meet into "
        "data.caption_features, from where training reads them in place of running the encoder. "
        "For small corpora: 60 tokens of 2,048 bf16 values are 246 kB a caption. The size is "
        "printed before anything is encoded. Run again after an interruption it continues.",
    )
    add_config_words(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the size, and write nothing")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    """Write the cache; 0.

    Raises:
        ConfigError: no captions, no encoder, or the folder holds something else.
        DataError: a corpus is not there, or damaged. StorageError: the disk is too small.
    """
    from gear_dist.config.loading import load_config
    from gear_dist.distributed.device import choose_device
    from gear_dist.training.caption_features import FeatureBuild

    config = load_config(args.configs, args.overrides)
    line, pace = StatusLine(sys.stderr, every_s=_EVERY_S), Pace(0)

    def on_shard(done: int, total: int) -> None:
        pace.total = total
        pace.add()
        line.update(lambda: f"{done} of {total} shards, {format_duration(pace.left_s)} left")

    build = FeatureBuild(config, choose_device(config.run.device), on_shard)
    line.close(erase=True)
    record = build.record
    print(
        f"{build.folder}: {record.num_captions:,} captions, {record.num_rows:,} tokens of "
        f"{record.fingerprint['width']:,} {record.dtype} values: {format_bytes(record.num_bytes)}",
        flush=True,
    )
    build.check_space()
    if args.dry_run:
        return EXIT_DONE
    if build.begin():
        print(f"{build.folder}: is complete already")
        return EXIT_DONE
    encoded = Pace(record.num_captions)

    def on_part(captions: int, found: bool) -> None:
        encoded.add(captions, timed=not found)
        line.update(
            lambda: (
                f"{encoded.done:,} of {encoded.total:,} captions, {encoded.per_s:,.0f}/s, "
                f"{format_duration(encoded.left_s)} left"
            )
        )

    build.write(on_part)
    line.close(erase=True)
    print(f"{build.folder}: done; train with data.caption_features={build.folder}")
    return EXIT_DONE
