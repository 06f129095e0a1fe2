"""What a step of the check found, and how its process hands it over."""

import argparse
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Verdict(NamedTuple):
    """A verdict with its table."""

    problems: tuple[str, ...] = ()
    """What is wrong, a line each; none: the step passed."""
    lines: tuple[str, ...] = ()
    """Markdown."""


def write(path: Path, verdict: Verdict) -> None:
    """For the process that started this one."""
    path.write_text(json.dumps(verdict._asdict()))


def read(path: Path) -> Verdict | None:
    """What a step wrote; None: nothing."""
    if not path.is_file():
        return None
    found = json.loads(path.read_text())
    return Verdict(tuple(found["problems"]), tuple(found["lines"]))


def table(columns: str, rows: list[tuple[object, ...]]) -> tuple[str, ...]:
    """A Markdown table; `columns` are separated by bars."""
    head = f"| {columns} |"
    cells = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return (head, "|" + "---|" * (columns.count("|") + 1), *cells)


def run_step(check: Callable[[str, Path], Verdict]) -> None:
    """A step's main: `check(device, scratch)`, its verdict in the file that was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    args = parser.parse_args()
    try:
        verdict = check(args.device, args.scratch)
    except Exception as error:
        traceback.print_exc()
        verdict = Verdict((f"{type(error).__name__}: {error}".splitlines()[0],))
    write(args.result, verdict)
    print("\n".join(verdict.lines))
    sys.exit(1 if verdict.problems else 0)
