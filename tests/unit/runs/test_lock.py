"""A run folder that another command trains in."""

import subprocess
import sys
from pathlib import Path

import pytest

from gear_dist.cli.main import main
from gear_dist.errors import StorageError
from gear_dist.runs.lock import run_lock
from gear_dist.runs.run_folder import RunFolder
from refusals import refused

HOLD = """
import sys
from pathlib import Path
from gear_dist.runs.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "runs" / "mine")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_command_is_refused_and_touches_nothing(
    holder: subprocess.Popen[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path / "runs" / "mine")
    folder.path.mkdir()
    folder.write_status("running", 3, 9)
    words = [f"run.root={tmp_path}/runs", "run.name=mine", "run.launcher=local", "data.train=none"]
    assert main(["train", "configs/tiny.yaml", *words]) == 2
    error = capsys.readouterr().err
    assert f"in use by another command (process {holder.pid} on " in error
    assert "run.name" in error
    status = folder.read_status()
    assert status is not None
    assert status.state == "running"


def test_the_lock_goes_with_a_killed_process(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.kill()
    holder.wait()
    for _ in range(2):
        with run_lock(tmp_path / "runs" / "mine"):
            pass
    with run_lock(tmp_path / "runs" / "mine"), run_lock(tmp_path / "runs" / "other"):
        pass


def test_a_root_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    root = tmp_path / "file"
    with refused(StorageError, f"run.root={root}"), run_lock(root / "mine"):
        pass
