""".ci/run hands on the result of `make test` and says what is missing."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "run"


@pytest.fixture
def clone(tmp_path):
    """A checkout whose tests are one line."""
    (tmp_path / ".ci").mkdir()
    shutil.copy2(SCRIPT, tmp_path / ".ci" / "run")

    def run(recipe, **environment):
        (tmp_path / "Makefile").write_text(f"test:\n\t@{recipe}\n")
        command = [str(tmp_path / ".ci" / "run")]
        values = {**os.environ, **environment}
        return subprocess.run(command, capture_output=True, text=True, cwd="/", env=values)

    return run


def test_success_and_failure_are_handed_on(clone):
    result = clone("echo tests ran in $(CURDIR)")
    assert result.returncode == 0, result.stderr
    assert "tests ran in /" in result.stdout
    assert "ci: make test ended with code 0" in result.stdout
    result = clone("exit 3")
    assert result.returncode != 0
    assert "ended with code 2" in result.stdout


def test_a_missing_tool_is_named(clone):
    result = clone("true", PYTHON="no-such-python")
    assert result.returncode == 1
    assert result.stderr == "ci: no-such-python is missing: install it first\n"
