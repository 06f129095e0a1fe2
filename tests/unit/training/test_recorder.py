"""What rank 0 leaves of a run: how it stands, while it trains and where a start is refused."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from gear_dist.config.loading import load_config
from gear_dist.distributed.worker_context import TrainProgress
from gear_dist.errors import DataError
from gear_dist.runs.loggers import JsonLinesSink, MetricsLog
from gear_dist.runs.run_folder import RunFolder
from gear_dist.training.recorder import RunRecorder


class Context(NamedTuple):
    """A worker alone."""

    rank: int = 0

    def report(self, progress: TrainProgress) -> None:
        """Nobody listens."""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    config = load_config(None, [f"run.root={tmp_path}", "stages.tokenizer.steps=9"])
    return RunFolder.create(config.run.folder, config)


def recorder_of(folder: RunFolder) -> RunRecorder:
    recorder = RunRecorder(folder.read_config(), Context(), torch.device("cpu"))
    recorder.take_folder()
    return recorder


def test_status_keeps_up_with_the_records(folder: RunFolder) -> None:
    recorder = recorder_of(folder)
    recorder._log = MetricsLog([JsonLinesSink(folder)])
    recorder.write_status("running")
    recorder.step = 5
    recorder.record("tokenizer", {"l1": 0.5})
    status = folder.read_status()
    assert status is not None
    assert (status.state, status.step) == ("running", 5)
    folder.write_status("failed", 5, 9, exit_code=1)
    recorder.step = 6
    recorder.record("tokenizer", {"l1": 0.5})
    status = folder.read_status()
    assert status is not None
    assert (status.state, status.step) == ("failed", 5), "a launcher has settled it meanwhile"


@pytest.mark.parametrize(
    ("state", "after"),
    [("done", "done"), ("interrupted", "interrupted"), ("failed", "failed"), ("running", "failed")],
)
def test_a_refused_start_changes_nothing_that_was_reached(
    folder: RunFolder, state: str, after: str
) -> None:
    folder.write_status(state, 7, 9, exit_code=0)
    recorder_of(folder).fail(DataError("the store refuses"))
    status = folder.read_status()
    assert status is not None
    assert (status.state, status.step) == (after, 7)
