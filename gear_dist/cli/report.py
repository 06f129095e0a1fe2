"""`gear-dist report`."""

import argparse

from gear_dist.runs.run_folder import RunFolder


def add_commands(subparsers: argparse._SubParsersAction) -> None:
    """Add `gear-dist report`."""
    parser = subparsers.add_parser(
        "report",
        help="write a run's report.html: curves, grids, evaluation, configuration",
        description="Write RUN_FOLDER/report.html, one self-contained page, from what the run has "
        "written so far.",
    )
    parser.add_argument("run_folder", help="folder of a run, such as runs/NAME")
    parser.set_defaults(run=run_report)


def run_report(args: argparse.Namespace) -> int:
    """Write the page and print its path."""
    from gear_dist.report.page import write_report

    print(write_report(RunFolder.open(args.run_folder)), flush=True)
    return 0
