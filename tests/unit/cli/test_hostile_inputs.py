"""Whatever a user gives or finds damaged, a command ends with an error of ours in one line.

A sample with a seed runs here; `make soak` runs about twenty minutes of it. See hostile_run.py for
what counts as a failure. Left out: `shard --ray`, and what servers and trainings do once they have
begun (hostile_worker.STOPS).
"""

import itertools
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gear_dist.cli.main import build_parser
from hostile_arguments import BASES, VALUES, argument_cases, base_case, find_commands, setting_cases
from hostile_files import file_cases
from hostile_run import (
    OURS,
    Case,
    Failure,
    HostileRunner,
    classify_end,
    hostile_environment,
    hostile_runner,
    innermost,
)
from hostile_tree import make_tree

SEED = int(os.environ.get("HOSTILE_SEED", "11"))
SOAK_VALUES = 20
SOAK_FILES = 2000
SOAK_TRAININGS = 40
# Of commands that have nothing to do, or find something missing, as they should.
BASE_CODES = {"store status": 3, "store env": 3, "store check": 3}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `hostile_tree`."""
    folder = tmp_path_factory.mktemp("hostile") / "tree"
    make_tree(folder, tmp_path_factory.mktemp("scratch"))
    return folder


@pytest.fixture(scope="module")
def runner(tree: Path) -> Iterator[HostileRunner]:
    """Runs cases on the tree."""
    with hostile_runner(tree) as found:
        yield found


def sweep(runner: HostileRunner, cases: Iterable[Case]) -> int:
    """Run cases. Returns: how many; AssertionError with each cause and an example of it."""
    failures: dict[str, list[Failure]] = {}
    count = 0
    for case in cases:
        count += 1
        if failure := runner.run(case):
            failures.setdefault(failure.what, []).append(failure)
    lines = [f"{len(found)} x {found[0]}" for found in failures.values()]
    assert not lines, f"of {count} cases:\n" + "\n".join(lines)
    return count


def test_every_command_is_swept() -> None:
    commands = {" ".join(words) for words, _ in find_commands(build_parser()[0])}
    assert commands == set(BASES), "give a new command a line in hostile_arguments.BASES"


def test_commands_work_before_anything_is_wrong(runner: HostileRunner) -> None:
    """Else the sweep would look at nothing but the first check."""
    for words in BASES:
        code = runner.answer(base_case(words))["code"]
        assert code == BASE_CODES.get(words, 0), words


def test_arguments(runner: HostileRunner) -> None:
    cases = argument_cases(build_parser()[0], random.Random(SEED), 1)
    assert sweep(runner, cases) > 150


def test_settings(runner: HostileRunner) -> None:
    assert sweep(runner, setting_cases(random.Random(SEED), 1)) > 100


def test_damaged_files(runner: HostileRunner, tree: Path) -> None:
    assert sweep(runner, itertools.islice(file_cases(tree, random.Random(SEED)), 80)) == 80


def test_damaged_files_of_a_run_that_goes_on(runner: HostileRunner, tree: Path) -> None:
    cases = file_cases(tree, random.Random(SEED), training=True)
    assert sweep(runner, itertools.islice(cases, 2)) == 2


@pytest.mark.parametrize("value", ["", "\udcff\udcfe", "9" * 5000, "two\nlines", "x" * 300])
def test_real_processes(tree: Path, tmp_path: Path, value: str) -> None:
    """The same through a command's own process, as bytes of the system."""
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    words = ["stats", value] if len(value) < 1000 else ["stats", "corpus/train", f"--html={value}"]
    command = [os.fsencode(word) for word in (sys.executable, "-m", "gear_dist", *words)]
    environment = hostile_environment(tmp_path)
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=120)
    assert done.returncode in OURS[1:]
    assert done.stderr.startswith(b"gear-dist: ")
    assert done.stderr.count(b"\n") == 1


def test_writes_outside_the_folder_are_seen(runner: HostileRunner) -> None:
    words = ("sample-corpus", "../beside", "--train=16", "--validation=16", "--workers=1")
    failure = runner.run(Case(words))
    assert failure is not None
    assert failure.what == "writes outside its folders"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({}, ""),
        ({"code": 1}, "exit code 1"),
        ({"code": 130}, "exit code 130"),
        ({"err": ""}, "no message"),
        ({"err": "usage: x\n"}, "no message"),
        ({"err": "gear-dist: \n"}, "no message"),
        ({"err": "gear-dist: a\nb\n"}, "more than one line"),
        ({"err": "a warning\ngear-dist: a\n"}, ""),
        ({"code": 0, "err": "Traceback (most recent call last):"}, "shows a traceback"),
        ({"strays": ["/x"]}, "writes outside its folders"),
        ({"lost": "hangs"}, "hangs"),
    ],
)
def test_the_judge(change: dict[str, Any], what: str) -> None:
    answer = {"code": 2, "trace": "", "out": "", "err": "gear-dist: a\n", "strays": []} | change
    found = classify_end(("plan",), answer)
    assert (found[0] if found else "") == what


def test_a_cause_is_the_last_line_of_ours() -> None:
    trace = (
        'Traceback\n  File "/x/gear_dist/cli/main.py", line 3, in main\n'
        '  File "/x/lib/torch.py", line 9, in load\nValueError: no: number\n'
    )
    assert innermost(trace) == "ValueError at gear_dist/cli/main.py 3, in main"


@pytest.mark.slow  # about twenty minutes in all
@pytest.mark.timeout(3600)
def test_soak_arguments(runner: HostileRunner) -> None:
    draw = random.Random(SEED + 1)
    count = min(SOAK_VALUES, len(VALUES))
    arguments = argument_cases(build_parser()[0], draw, count)
    assert sweep(runner, itertools.chain(arguments, setting_cases(draw, count))) > 3000


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_soak_damaged_files(runner: HostileRunner, tree: Path) -> None:
    draw = random.Random(SEED + 1)
    damaged = itertools.islice(file_cases(tree, draw), SOAK_FILES)
    trained = itertools.islice(file_cases(tree, draw, training=True), SOAK_TRAININGS)
    assert sweep(runner, itertools.chain(damaged, trained)) == SOAK_FILES + SOAK_TRAININGS
