"""A run that has published checkpoints does not start over because none is where it looks."""

from pathlib import Path

import pytest

from checkpoint_states import shards
from gear_dist.checkpoints.resume import open_manager, open_resumed
from gear_dist.checkpoints.saving import Saver
from gear_dist.config.loading import load_config, to_dict
from gear_dist.config.schema import RunConfig
from gear_dist.errors import DataError
from gear_dist.runs.run_folder import RunFolder
from refusals import refused


def configured(root: Path, *words: str) -> RunConfig:
    return load_config(None, [f"run.root={root}/runs", "run.name=a", *words])


def live(config: RunConfig, step: int) -> int:
    """A start of the run: the step that it resumes from, 0: none. Then it saves one of `step`."""
    folder = RunFolder.create(config.run.folder, config)
    store = open_manager(config)
    try:
        reader = open_resumed(store, config)
        found = reader.manifest.step if reader else 0
        folder.append_metrics({"step": step})
        saver = Saver(store, lambda line: None, published=folder.write_newest_checkpoint)
        saver.save(step, {"config": to_dict(config), "origin": "", "metrics": {}}, shards())
        saver.wait()
        return found
    finally:
        store.close()


def test_another_address_is_refused_and_the_old_one_still_resumes(tmp_path: Path) -> None:
    assert live(configured(tmp_path), 5) == 0
    elsewhere = configured(tmp_path, f"checkpoint.address={tmp_path}/elsewhere")
    with pytest.raises(DataError) as caught:
        live(elsewhere, 6)
    for part in ("checkpoint of step 5", "checkpoint.address", "data.endpoint", "run.resume=none"):
        assert part in str(caught.value)
    recorded = RunFolder(elsewhere.run.folder).read_config()
    assert recorded.checkpoint.address == ""  # a refused start changes nothing
    assert live(configured(tmp_path), 6) == 5


def test_checkpoints_that_are_gone_are_missed(tmp_path: Path) -> None:
    live(configured(tmp_path), 5)
    for folder in (tmp_path / "runs/a/checkpoints").glob("step-*"):
        folder.rename(tmp_path / folder.name)
    place = tmp_path / "runs/a/checkpoints"
    with refused(DataError, place, "step 5", "checkpoint.address", "data.endpoint", "run.name"):
        live(configured(tmp_path), 6)


def test_resume_none_starts_over(tmp_path: Path) -> None:
    live(configured(tmp_path), 5)
    words = [f"checkpoint.address={tmp_path}/elsewhere", "run.resume=none"]
    assert live(configured(tmp_path, *words), 6) == 0
    assert live(configured(tmp_path, words[0]), 7) == 6


def test_a_run_that_never_saved_starts_again(tmp_path: Path) -> None:
    config = configured(tmp_path)
    RunFolder.create(config.run.folder, config).append_metrics({"step": 1})
    assert live(config, 5) == 0
