"""Sinks of metrics: JSON lines always; Weights & Biases never stops a run."""

import sys
import types
import warnings

import pytest

from gear_dist.config.loading import load_config, to_dict
from gear_dist.config.run import LogConfig
from gear_dist.runs.loggers import JsonLinesSink, WandbSink, open_metrics_log
from gear_dist.runs.run_folder import RunFolder

AUTO = LogConfig(wandb="auto")


class FakeRun:
    def __init__(self, fail=False):
        self.fail = fail
        self.logged = []
        self.exit_code = None

    def define_metric(self, *_args, **_kwargs):
        pass

    def log(self, record):
        if self.fail:
            raise ConnectionError("network is down\nlong story")
        self.logged.append(record)

    def finish(self, exit_code):
        self.exit_code = exit_code


class FakeWandb(types.ModuleType):
    """Stands in for the package; keeps the arguments of each start."""

    def __init__(self, run=None, error=None):
        super().__init__("wandb")
        self.run = run or FakeRun()
        self.error = error
        self.starts = []

    def Settings(self, **settings):  # noqa: N802 - the package's name
        return settings

    def Image(self, path):  # noqa: N802 - the package's name
        return f"image of {path}"

    def init(self, **arguments):
        if self.error:
            raise self.error
        self.starts.append(arguments)
        return self.run


@pytest.fixture
def settings():
    return to_dict(load_config(None, ["log.wandb=auto", "run.name=mine"]))


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "mine", load_config())


@pytest.fixture
def fake(monkeypatch):
    def install(**arguments):
        module = FakeWandb(**arguments)
        monkeypatch.setitem(sys.modules, "wandb", module)
        return module

    return install


def test_off_means_that_wandb_is_not_even_imported(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    log = open_metrics_log(folder, LogConfig(), {})
    assert [type(sink) for sink in log.sinks] == [JsonLinesSink]
    log.log({"step": 1})
    log.close()
    assert folder.read_metrics() == [{"step": 1}]


def test_records_reach_every_sink(folder, settings, fake):
    module = fake()
    log = open_metrics_log(folder, AUTO, settings)
    log.log({"step": 1, "l1": 0.5})
    log.log_grid("samples", folder.sample_grid_path(1), 1)
    log.close(75)
    assert folder.read_metrics() == [{"step": 1, "l1": 0.5}]
    image = f"image of {folder.sample_grid_path(1)}"
    assert module.run.logged == [{"step": 1, "l1": 0.5}, {"samples": image, "step": 1}]
    assert module.run.exit_code == 75


@pytest.mark.parametrize(("key", "mode"), [("", "offline"), ("secret", "online")])
def test_without_a_key_it_is_offline(folder, settings, fake, monkeypatch, key, mode):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", key)
    module = fake()
    WandbSink(folder, "project", settings)
    start = module.starts[0]
    assert start["mode"] == mode
    assert start["dir"] == str(folder.path)
    assert start["name"] == "mine"
    assert start["project"] == "project"
    assert start["config"] == settings


def test_a_key_does_not_overrule_the_wish_to_stay_offline(folder, settings, fake, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k")
    monkeypatch.setenv("WANDB_MODE", "offline")
    module = fake()
    WandbSink(folder, "project", settings)
    assert module.starts[0]["mode"] == "offline"


def test_a_resumed_run_keeps_its_id(folder, settings, fake):
    module = fake()
    WandbSink(folder, "project", settings)
    WandbSink(RunFolder(folder.path), "project", settings)
    assert module.starts[0]["id"] == module.starts[1]["id"]
    assert len(module.starts[0]["id"]) == 32


def test_a_failing_start_warns_once_and_the_run_goes_on(folder, settings, fake):
    fake(error=OSError("cannot reach the server"))
    with pytest.warns(UserWarning, match=r"wandb start failed \(OSError: cannot reach") as caught:
        log = open_metrics_log(folder, AUTO, settings)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log.log({"step": 1})
        log.close()
    assert folder.read_metrics() == [{"step": 1}]


def test_a_failing_log_warns_once_in_one_line_and_stops_trying(folder, settings, fake):
    module = fake(run=FakeRun(fail=True))
    log = open_metrics_log(folder, AUTO, settings)
    with pytest.warns(UserWarning, match="network is down") as caught:
        log.log({"step": 1})
    assert len(caught) == 1
    assert "long story" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.run.fail = False
        log.log({"step": 2})
        log.close()
    assert module.run.logged == []
    assert len(folder.read_metrics()) == 2


def test_an_absent_package_is_a_warning(folder, settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.warns(UserWarning, match="wandb start failed"):
        WandbSink(folder, "project", settings)


def test_the_real_package_writes_offline_into_the_run_folder(
    folder, settings, monkeypatch, tmp_path
):
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        log = open_metrics_log(folder, AUTO, settings)
        log.log({"step": 1, "l1": 0.5})
        log.close()
    assert list((folder.path / "wandb").glob("offline-run-*/run-*.wandb"))
