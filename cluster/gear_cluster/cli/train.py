"""`gear-dist train CONFIG ... [key=value ...]`."""

import argparse
from typing import Any

from gear_dist.cli.config_arguments import add_config_words
from gear_dist.errors import EXIT_DONE, EXIT_INTERRUPTED


def add_commands(subparsers: Any) -> None:
    """Add `train` to the command line."""
    train = subparsers.add_parser(
        "train",
        help="train, or resume a run",
        description="Train as CONFIG says, or resume from the newest checkpoint of its run folder. "
        "Ctrl-C stops with a checkpoint; a second one stops at once.",
    )
    add_config_words(train)
    train.add_argument(
        "--resume",
        metavar="auto|none|CHECKPOINT",
        help="resume from the newest checkpoint (the default), start over, or resume from this "
        "checkpoint's folder; the same as run.resume=",
    )
    train.add_argument(
        "--init-from",
        metavar="FOLDER",
        help="start from the weights of another run or an imported model; the same as "
        "stages.init_from=",
    )
    train.add_argument(
        "--dry-run",
        action="store_true",
        help="check the configuration, the shards and an estimate of memory; train nothing",
    )
    train.add_argument(
        "--verbose", action="store_true", help="also show the output of Ray and of the workers"
    )
    train.set_defaults(run=_train)


def _flags(args: argparse.Namespace) -> list[str]:
    """Overrides that are given as flags."""
    flags = {"run.resume": args.resume, "stages.init_from": args.init_from}
    return [f"{name}={value}" for name, value in flags.items() if value is not None]


def _train(args: argparse.Namespace) -> int:
    from gear_cluster.launch import launch
    from gear_cluster.rendezvous import is_first_process
    from gear_dist.config.loading import load_config
    from gear_dist.runs.run_folder import RunFolder
    from gear_dist.training.init_from import open_init_from

    config = load_config(args.configs, [*args.overrides, *_flags(args)])
    config.check_trainable()
    if args.dry_run:
        from gear_cluster.dry_run import dry_run

        dry_run(config)
        return EXIT_DONE
    if not RunFolder(config.run.folder).holds_run():
        open_init_from(config)  # a wrong folder is told before any worker starts
    result = launch(config, verbose=args.verbose)
    interrupted = result.state == "interrupted"
    # Under torchrun this runs once a worker.
    if is_first_process(config.run.launcher):
        where = f"step {result.step} ({result.reason}); run the same command to resume"
        done = f"done: {result.step} steps; run folder {config.run.folder}"
        print(f"interrupted at {where}" if interrupted else done, flush=True)
    return EXIT_INTERRUPTED if interrupted else EXIT_DONE
