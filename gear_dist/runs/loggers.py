"""Where rank 0's metric records go: metrics.jsonl always, Weights & Biases if asked."""

import os
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from gear_dist.config.run import LogConfig
from gear_dist.runs.run_folder import RunFolder
from gear_dist.storage.atomic import write_file

_WANDB_START_SECONDS = 30


class MetricsSink(Protocol):
    """One destination of metric records."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Take one record; `step` is the optimizer step, the rest plain numbers and text."""

    def log_grid(self, kind: str, path: Path, step: int) -> None:
        """Take a picture grid that has just been written."""

    def close(self, exit_code: int) -> None:
        """Flush; `exit_code` is the run's."""


class MetricsLog:
    """Hands every record to every sink, in order."""

    def __init__(self, sinks: list[MetricsSink]) -> None:
        self.sinks = sinks

    def log(self, record: Mapping[str, Any]) -> None:
        """Hand a record on; StorageError where metrics.jsonl cannot be written."""
        for sink in self.sinks:
            sink.log(record)

    def log_grid(self, kind: str, path: Path, step: int) -> None:
        """Hand a grid on."""
        for sink in self.sinks:
            sink.log_grid(kind, path, step)

    def close(self, exit_code: int = 0) -> None:
        """Close every sink."""
        for sink in self.sinks:
            sink.close(exit_code)


def open_metrics_log(folder: RunFolder, log: LogConfig, settings: Mapping[str, Any]) -> MetricsLog:
    """The sinks that the configuration asks for. Call `folder.rewind(step)` before, on resume.

    Args:
        settings: all of the run's as plain data, for sinks that show them.
    """
    sinks: list[MetricsSink] = [JsonLinesSink(folder)]
    if log.wandb == "auto":
        sinks.append(WandbSink(folder, log.wandb_project, settings))
    return MetricsLog(sinks)


class JsonLinesSink:
    """metrics.jsonl of the run folder; the grids are in it already."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def log(self, record: Mapping[str, Any]) -> None:
        """Append the record; StorageError where the disk refuses."""
        self._folder.append_metrics(record)

    def log_grid(self, kind: str, path: Path, step: int) -> None:
        """Nothing to do: grids lie in the run folder."""

    def close(self, exit_code: int) -> None:
        """Close the file."""
        self._folder.close()


class WandbSink:
    """Weights & Biases, its files under RUN/wandb; offline where WANDB_API_KEY is missing
    or WANDB_MODE is not online.

    A resumed run continues under the same id. It is never allowed to stop a run: the first failure
    warns, and the sink is silent from then on. Command line, environment, code, git and console
    output are not sent.
    """

    def __init__(self, folder: RunFolder, project: str, settings: Mapping[str, Any]) -> None:
        self._run: Any = None
        try:
            self._run = _start_wandb(folder, project, settings)
        except Exception as error:  # any failure of an optional service, of any class
            self._give_up("start", error)

    def log(self, record: Mapping[str, Any]) -> None:
        """Send a record, its `step` as the axis of all others."""
        self._guarded("log", lambda: self._run.log(dict(record)))

    def log_grid(self, kind: str, path: Path, step: int) -> None:
        """Send a grid as an image."""
        self._guarded("image", lambda: self._run.log({kind: _wandb_image(path), "step": step}))

    def close(self, exit_code: int) -> None:
        """End the run there."""
        self._guarded("finish", lambda: self._run.finish(exit_code=exit_code))
        self._run = None

    def _guarded(self, action: str, call: Any) -> None:
        if self._run is None:
            return
        try:
            call()
        except Exception as error:
            self._give_up(action, error)

    def _give_up(self, action: str, error: Exception) -> None:
        self._run = None
        text = str(error).strip().partition("\n")[0]
        warnings.warn(
            f"wandb {action} failed ({type(error).__name__}: {text}); the run continues without it "
            "(metrics.jsonl has everything; log.wandb=off silences this)",
            stacklevel=4,
        )


def _start_wandb(folder: RunFolder, project: str, config: Mapping[str, Any]) -> Any:
    import wandb

    home = folder.path / "wandb"
    home.mkdir(exist_ok=True)
    id_path = home / "run_id"
    if not id_path.is_file():
        write_file(id_path, uuid.uuid4().hex.encode())
    # A key in the environment does not overrule the user's own wish to stay offline.
    wanted = os.environ.get("WANDB_MODE", "online")
    online = bool(os.environ.get("WANDB_API_KEY")) and wanted == "online"
    settings = wandb.Settings(
        init_timeout=_WANDB_START_SECONDS,
        console="off",
        disable_git=True,
        disable_code=True,
        save_code=False,
        silent=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
    )
    run = wandb.init(
        project=project,
        name=folder.path.name,
        id=id_path.read_text().strip(),
        resume="allow" if online else None,  # offline runs of one id are joined by `wandb sync`
        dir=str(folder.path),
        mode="online" if online else "offline",
        config=dict(config),
        settings=settings,
    )
    run.define_metric("*", step_metric="step")
    return run


def _wandb_image(path: Path) -> Any:
    import wandb

    return wandb.Image(str(path))
