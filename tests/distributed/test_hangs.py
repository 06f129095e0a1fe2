"""Runs that hang, and saves that are only slow; by the command line, in one process."""

import subprocess
import sys
from pathlib import Path

import pytest
import training_case as case

from gear_dist.config.loading import config_yaml
from gear_dist.runs.run_folder import RunFolder, Status
from sample_shards import SampleShards


def run(tmp_path: Path, shards: SampleShards, teacher: Path, where: str) -> tuple:
    """The exit code, standard error and status of a run that is slow or stuck somewhere."""
    config = case.tiny_config(
        tmp_path,
        shards.file,
        teacher,
        "stages.tokenizer.steps=4",
        "checkpoint.every_steps=2",
        "run.launcher=local",
        "checkpoint.asynchronous=false",
    )
    path = tmp_path / "run.yaml"
    path.write_text(config_yaml(config))
    command = [sys.executable, str(Path(__file__).with_name("hang_case.py")), where]
    command += ["train", str(path)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return found.returncode, found.stderr, RunFolder(config.run.folder).read_status()


@pytest.mark.parametrize("where", ["step", "stuck"])
def test_a_hang_ends_the_run_and_says_so(
    tmp_path: Path, sample_shards: SampleShards, teacher: Path, where: str
) -> None:
    code, stderr, status = run(tmp_path, sample_shards, teacher, where)
    assert code == 1, stderr
    assert "Timeout (" in stderr
    assert isinstance(status, Status)
    assert (status.state, status.exit_code, status.step) == ("failed", 1, 2)
    assert "run.hang_timeout_s" in status.reason


def test_a_slow_save_is_no_hang(tmp_path: Path, sample_shards: SampleShards, teacher: Path) -> None:
    """Two of them, each longer than the limit."""
    code, stderr, status = run(tmp_path, sample_shards, teacher, "slow")
    assert code == 0, stderr
    assert status.state == "done"
