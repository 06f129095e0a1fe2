"""The run folder survives kills, refuses other runs, and explains disk failures."""

import errno
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
import yaml

from gear_dist.config.loading import load_config
from gear_dist.errors import ConfigError, DataError, StorageError
from gear_dist.runs.run_folder import RunFolder, Status
from gear_dist.storage.open import open_storage
from refusals import refused


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", load_config())


def trained(path, overrides=()):
    folder = RunFolder.create(path, load_config(None, list(overrides)))
    folder.append_metrics({"step": 20, "l1": 0.5})
    folder.close()
    return folder


def test_create_makes_every_part_and_a_config_that_reads_back(tmp_path):
    config = load_config(None, ["data.image_size=64", "optimizer.betas=[0.8,0.95]"])
    folder = RunFolder.create(tmp_path / "deep" / "run", config)
    assert all(part.is_dir() for part in (folder.grids, folder.checkpoints, folder.weights))
    assert folder.read_config() == config
    assert RunFolder.open(folder.path).read_config_dict()["data"]["image_size"] == 64


def test_open_refuses_what_is_no_run_folder(tmp_path):
    with refused(DataError, tmp_path / "absent", "no such"):
        RunFolder.open(tmp_path / "absent")
    with refused(DataError, tmp_path, "config.yaml"):
        RunFolder.open(tmp_path)


def test_another_configuration_is_refused_and_named(tmp_path):
    trained(tmp_path, ["run.seed=1", "tokenizer.codebook_size=256"])
    with pytest.raises(ConfigError) as caught:
        RunFolder.create(tmp_path, load_config(None, ["tokenizer.codebook_size=512"]))
    message = str(caught.value)
    assert "tokenizer.codebook_size=512 (the run has 256)" in message
    assert "run.seed=0 (the run has 1)" in message
    assert "run.name" in message
    assert "\n" not in message
    assert RunFolder(tmp_path).read_config().tokenizer.codebook_size == 256


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ([], ["teacher.block=3"], {"teacher.block=3 (the run has 0)"}),
        (["more_teachers.b.block=1"], ["more_teachers.b.block=2"], {"block=2 (the run has 1)"}),
        ([], ["more_teachers.b.path=x"], {"b.path=x (the run has none)", "b.name=dinov2"}),
        (["more_teachers.b.path=x"], [], {"b.path=none (the run has x)", "b.name=none"}),
    ],
)
def test_other_teachers_are_another_run(tmp_path, before, after, named):
    trained(tmp_path, before)
    with pytest.raises(ConfigError) as caught:
        RunFolder.create(tmp_path, load_config(None, after))
    assert all(text in str(caught.value) for text in named), str(caught.value)


def test_a_run_from_before_a_teachers_newer_settings_goes_on(tmp_path):
    folder = trained(tmp_path, ["more_teachers.b.path=x"])
    node = folder.read_config_dict()
    node["teacher"] = {"name": "dinov2", "path": "facebook/dinov2-base"}
    del node["more_teachers"]["b"]["alpha"]
    folder.config_path.write_text(yaml.safe_dump(node))
    config = load_config(None, ["more_teachers.b.path=x"])
    assert RunFolder.create(tmp_path, config).read_config() == config


@pytest.mark.parametrize(
    "change",
    [
        "run.workers=2",
        "run.launcher=local",
        "log.every_steps=5",
        "data.endpoint=http://127.0.0.1:9",
        "sampling.guidance=1",
        "stages.joint.steps=200",
    ],
)
def test_what_does_not_define_the_run_may_change(tmp_path, change):
    trained(tmp_path, ["stages.joint.steps=100"])
    base = [] if change.startswith("stages") else ["stages.joint.steps=100"]
    config = load_config(None, [*base, change])
    folder = RunFolder.create(tmp_path, config)
    assert folder.read_config() != config  # the trainer writes it, once it knows that it resumes
    folder.write_config(config)
    assert folder.read_config() == config


def test_a_stage_may_not_shrink(tmp_path):
    trained(tmp_path, ["stages.joint.steps=100"])
    with refused(ConfigError, tmp_path, "stages.joint.steps=50", 100, "run.name"):
        RunFolder.create(tmp_path, load_config(None, ["stages.joint.steps=50"]))


def test_a_setting_that_an_older_version_did_not_have_counts_as_its_default(tmp_path):
    folder = trained(tmp_path)
    text = folder.config_path.read_text()
    folder.config_path.write_text(text.replace("  ema_decay: 0.9999\n", ""))
    RunFolder.create(tmp_path, load_config())
    folder.config_path.write_text(text.replace("  ema_decay: 0.9999\n", ""))
    with refused(ConfigError, tmp_path, "optimizer.ema_decay=0.9", "0.9999", "run.name"):
        RunFolder.create(tmp_path, load_config(None, ["optimizer.ema_decay=0.9"]))


def test_resume_none_is_refused_where_a_run_is(tmp_path):
    trained(tmp_path)
    with refused(ConfigError, "run.resume=none", tmp_path, "run.name", "run.resume=auto"):
        RunFolder.create(tmp_path, load_config(None, ["run.resume=none"]))


def test_a_start_may_be_asked_about_without_touching_anything(tmp_path):
    assert RunFolder(tmp_path / "new").check_may_start(load_config()) is False
    assert list(tmp_path.iterdir()) == []
    assert trained(tmp_path / "old").check_may_start(load_config()) is True


def test_a_start_that_trained_nothing_may_be_corrected(tmp_path):
    RunFolder.create(tmp_path, load_config(None, ["data.image_size=64"]))
    config = load_config(None, ["data.image_size=128", "run.resume=none"])
    assert RunFolder.create(tmp_path, config).read_config() == config


def test_memory_may_be_traded_for_time_when_a_run_goes_on(tmp_path):
    trained(tmp_path / "run")
    words = [
        "engine.zero_stage=3",
        "engine.optimizer_offload=cpu",
        "engine.keep_gathered_elements=0",
        "engine.max_micro_batch=8",
        "tokenizer.activation_checkpointing=true",
        "generator.activation_checkpointing=true",
        "data.shard_memory_bytes=1000000",
    ]
    assert RunFolder(tmp_path / "run").check_may_start(load_config(None, words)) is True
    with refused(ConfigError, tmp_path / "run", "tokenizer.codebook_size=64", 16384):
        RunFolder(tmp_path / "run").check_may_start(
            load_config(None, ["tokenizer.codebook_size=64"])
        )


def test_metrics_are_json_lines_visible_at_once(folder):
    record = {
        "step": 20,
        "stage": "joint",
        "l1": float("nan"),
        "vq": np.float32(0.5),
        "codes": np.int64(7),
        "align": torch.tensor(-0.25),
    }
    folder.append_metrics(record)
    line = folder.metrics_path.read_text()
    assert line.endswith("\n")
    expected = {"step": 20, "stage": "joint", "l1": None, "vq": 0.5, "codes": 7, "align": -0.25}
    assert json.loads(line) == expected
    assert "NaN" not in line


def test_a_line_torn_by_a_kill_is_ignored_and_overwritten(folder):
    folder.append_metrics({"step": 20})
    folder.append_metrics({"step": 40})
    folder.close()
    with folder.metrics_path.open("a") as file:
        file.write('{"step": 60, "l1": 0.')
    assert [r["step"] for r in folder.read_metrics()] == [20, 40]
    resumed = RunFolder(folder.path)
    resumed.append_metrics({"step": 60})
    assert [json.loads(line)["step"] for line in folder.metrics_path.open()] == [20, 40, 60]


def test_a_killed_writer_loses_no_finished_record(folder):
    program = f"""
    import os, signal
    from gear_dist.runs.run_folder import RunFolder
    folder = RunFolder({str(folder.path)!r})
    for step in range(1, 101):
        folder.append_metrics({{"step": step}})
    os.kill(os.getpid(), signal.SIGKILL)
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(program)])
    assert result.returncode == -9
    assert [r["step"] for r in folder.read_metrics()] == list(range(1, 101))


def test_rewind_drops_later_records_and_grids_and_appending_goes_on(folder):
    for step in (20, 40, 60):
        folder.append_metrics({"step": step, "try": 1})
        folder.sample_grid_path(step).write_bytes(b"png")
    folder.rewind(40)
    folder.append_metrics({"step": 60, "try": 2})
    records = [(r["step"], r["try"]) for r in folder.read_metrics()]
    assert records == [(20, 1), (40, 1), (60, 2)]
    assert [grid.step for grid in folder.list_grids()] == [20, 40]


def test_rewind_of_an_empty_folder_is_nothing(folder):
    folder.rewind(0)
    assert folder.read_metrics() == []


def test_status_is_replaced_whole(folder):
    assert folder.read_status() is None
    folder.write_status("running", 1, 10)
    folder.write_status("failed", 3, 10, exit_code=4, reason="loss is not finite")
    status = folder.read_status()
    assert status[:5] == ("failed", 3, 10, 4, "loss is not finite")
    assert status.updated.endswith("+00:00")
    assert [p.name for p in folder.path.iterdir() if "status" in p.name] == ["status.json"]


def test_status_of_a_later_version_is_read(folder):
    node = {"state": "done", "step": 1, "total_steps": 1, "new_fact": 1}
    folder.status_path.write_text(json.dumps(node))
    assert folder.read_status() == Status("done", 1, 1)


def test_garbage_in_json_is_named(folder):
    folder.evaluation_path.write_text("{")
    with refused(DataError, folder.evaluation_path, "JSON"):
        folder.read_evaluation()


def test_environment_and_evaluation_read_back(folder):
    assert folder.read_environment() == {}
    assert folder.read_evaluation() is None
    folder.write_environment({"device": torch.device("cpu"), "dtype": torch.bfloat16})
    folder.write_evaluation({"psnr_db": 22.5, "folder": folder.path})
    assert folder.read_environment() == {"device": "cpu", "dtype": "torch.bfloat16"}
    assert folder.read_evaluation() == {"psnr_db": 22.5, "folder": str(folder.path)}


def test_grids_are_listed_by_step_and_strangers_ignored(folder):
    for step in (200, 1000, 30):
        folder.reconstruction_grid_path(step).write_bytes(b"")
    folder.sample_grid_path(30).write_bytes(b"")
    (folder.grids / "notes.png").write_bytes(b"")
    assert [grid.step for grid in folder.list_grids("reconstruction")] == [30, 200, 1000]
    assert [grid.kind for grid in folder.list_grids("samples")] == ["samples"]


def test_a_file_in_the_way_is_explained(tmp_path):
    (tmp_path / "runs").write_text("")
    with refused(StorageError, tmp_path / "runs/a", "file", "run.root"):
        RunFolder.create(tmp_path / "runs" / "a", load_config())


def test_a_folder_that_refuses_is_explained(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    monkeypatch.setattr(os, "mkdir", refuse)
    with refused(StorageError, tmp_path, "Permission denied", "run.root"):
        RunFolder.create(tmp_path / "a", load_config())


def test_a_full_disk_stops_the_log_with_one_line_and_leaves_whole_lines(folder):
    """The file-size limit of a child process stands in for the end of a real disk."""
    program = f"""
    import resource, sys
    from gear_dist.errors import StorageError
    from gear_dist.runs.run_folder import RunFolder
    folder = RunFolder({str(folder.path)!r})
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        for step in range(1000):
            folder.append_metrics({{"step": step}})
    except StorageError as error:
        sys.exit(f"StorageError: {{error}}")
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stderr.startswith(f"StorageError: {folder.metrics_path}")
    assert len(result.stderr.splitlines()) == 1
    assert folder.metrics_path.stat().st_size == 1000
    steps = [r["step"] for r in folder.read_metrics()]
    assert steps == list(range(len(steps)))
    folder.append_metrics({"step": len(steps)})
    assert all(json.loads(line) for line in folder.metrics_path.open())


def test_a_disk_that_fills_up_keeps_the_old_status(folder, monkeypatch):
    folder.write_status("running", 1, 10)
    old = folder.status_path.read_bytes()

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with refused(StorageError, folder.status_path, "disk"):
        folder.write_status("running", 2, 10)
    assert folder.status_path.read_bytes() == old
    names = [p.name for p in folder.path.iterdir()]
    assert not [n for n in names if n.startswith(".")], "a temporary file stayed behind"


def test_an_append_to_a_full_device_is_explained(folder):
    folder.metrics_path.symlink_to("/dev/full")
    with refused(StorageError, folder.metrics_path, "disk"):
        folder.append_metrics({"step": 1})


def test_records_written_whole_can_lie_in_any_storage(tmp_path, object_store):
    storage = open_storage("s3://gear-tests-runs/a", object_store.endpoint)
    folder = RunFolder(tmp_path / "a", storage)
    config = load_config(None, ["run.name=a"])
    folder.write_config(config)
    folder.write_id("0123abcd")
    folder.write_status("running", 3, 10)
    folder.write_environment({"device": "cpu"})
    folder.write_newest_checkpoint("s3://b/step-3", 3)
    folder.forget_newest_checkpoint()
    again = RunFolder(tmp_path / "elsewhere", storage)
    assert again.read_config_dict()["run"]["name"] == "a"
    assert again.read_id() == "0123abcd"
    assert again.read_status()[:3] == ("running", 3, 10)
    assert again.read_environment() == {"device": "cpu"}
    assert again.read_newest_checkpoint() is None
    assert again.read_evaluation() is None
    assert not (tmp_path / "a").exists()
