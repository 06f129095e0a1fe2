"""The run folder: everything that a run leaves behind, and the only code that knows its names.

Rank 0 alone writes, but all ranks add to bad_samples.txt. Files that are replaced are replaced
atomically; metrics.jsonl is appended to, one line a record, and a line torn by a kill is dropped
when the run resumes.
"""

import datetime
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from gear_dist.config.compare import differing_settings
from gear_dist.config.loading import config_yaml, load_saved_config
from gear_dist.config.schema import RunConfig
from gear_dist.errors import ConfigError, DataError
from gear_dist.formatting import first_line
from gear_dist.runs.metrics_file import MetricsFile, disk_errors
from gear_dist.storage.base import MissingObjectError, Storage
from gear_dist.storage.json_files import build_record, parse_json, to_json
from gear_dist.storage.local import FileStorage
from gear_dist.storage.paths import local_path

State = Literal["running", "restarting", "done", "interrupted", "failed"]
RUN_ID = re.compile(r"[0-9a-f]{8}")
"""A run's id: drawn when it begins, and left in its folder, its checkpoints and their address."""
_GRID_NAME = re.compile(r"(?P<kind>[a-z]+)-(?P<step>\d+)\.png")


class Status(NamedTuple):
    """How a run stands; `updated` is an ISO 8601 time in UTC."""

    state: State
    step: int
    total_steps: int
    exit_code: int | None = None
    reason: str = ""
    updated: str = ""
    attempt: int = 1
    """Counts the starts of the workers by one command."""
    last_failure: str = ""
    """The last crash that training has gone on after."""


class Grid(NamedTuple):
    """A picture grid of the run: kind `reconstruction` or `samples`, taken after `step`."""

    kind: str
    step: int
    path: Path


class RunFolder:
    """Paths, writers and readers of one run folder. Construction touches no file."""

    def __init__(self, path: str | Path, files: Storage | None = None) -> None:
        """
        Args:
            path: the folder. Metrics are appended, and grids and weights written, below it.
            files: where records that are written whole are kept; None: in the folder.
        """
        self.path = Path(path)
        self.files: Storage = files or FileStorage(self.path)
        self.config_path = self.path / "config.yaml"
        self.environment_path = self.path / "environment.json"
        self.metrics_path = self.path / "metrics.jsonl"
        self.bad_samples_path = self.path / "bad_samples.txt"
        self.status_path = self.path / "status.json"
        self.id_path = self.path / "run_id"
        self.newest_checkpoint_path = self.path / "newest_checkpoint.json"
        self.evaluation_path = self.path / "evaluation.json"
        self.caption_scores_path = self.path / "captions.json"
        self.report_path = self.path / "report.html"
        self.grids = self.path / "grids"
        self.checkpoints = self.path / "checkpoints"
        self.weights = self.path / "weights"
        self._metrics = MetricsFile(self.metrics_path)

    @classmethod
    def create(cls, path: str | Path, config: RunConfig) -> "RunFolder":
        """Make the folder, or resume the run that it holds.

        The configuration of a new run is written; that of a resumed one stays until the trainer
        knows that it resumes: a start that is refused changes nothing.

        Raises:
            ConfigError: see `check_may_start`.
            StorageError: the folder cannot be written.
        """
        folder = cls(path)
        resumes = folder.check_may_start(config)
        with disk_errors(folder.path):
            for part in (folder.path, folder.grids, folder.checkpoints, folder.weights):
                part.mkdir(parents=True, exist_ok=True)
            folder.files.remove_leftovers()
        if not resumes:
            folder.write_config(config)
        return folder

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """Open a finished or running run for reading.

        Raises:
            DataError: there is no run folder at `path`.
        """
        folder = cls(local_path(path))
        if not folder.path.is_dir():
            raise DataError(f"{folder.path}: no such run folder")
        if not folder.config_path.is_file():
            raise DataError(f"{folder.path}: not a run folder (it has no config.yaml)")
        return folder

    def holds_run(self) -> bool:
        """Whether something was trained here: a start that failed before that may be redone."""
        if not self.config_path.is_file():
            return False
        return self.has_records or self._has_checkpoints()

    @property
    def has_records(self) -> bool:
        """Whether steps were taken here that left a record."""
        return self.metrics_path.is_file() and self.metrics_path.stat().st_size > 0

    def _has_checkpoints(self) -> bool:
        """Whether a save has at least begun here."""
        return self.checkpoints.is_dir() and any(p.is_dir() for p in self.checkpoints.iterdir())

    def check_may_start(self, config: RunConfig) -> bool:
        """Whether a run of this configuration would resume here (else it would be new).

        Raises:
            ConfigError: the folder holds a run of another configuration (see `check_same_run`), or
                any run where run.resume=none. Where there may be checkpoints it is for them to
                say: a run none of whose checkpoints can be used may start over.
        """
        if not self.holds_run():
            return False
        checkpoints_decide = config.checkpoint.address or self._has_checkpoints()
        if config.run.resume == "none" and not checkpoints_decide:
            raise ConfigError(
                f"run.resume=none, but {self.path} already holds a run; set another "
                "run.name, remove the folder, or use run.resume=auto to continue it"
            )
        self.check_same_run(config)
        return True

    def check_same_run(self, config: RunConfig) -> None:
        """Refuse a configuration that defines another run than the folder's.

        All settings define the run but those that their section names in MAY_CHANGE.

        Raises:
            ConfigError: names each setting that differs, both values, and the fix.
        """
        differing = differing_settings(self.read_config_dict(), config)
        if differing:
            raise ConfigError(
                f"{self.path} holds a run of another configuration: {', '.join(differing)}; set "
                "another run.name, or restore these settings (stages may only grow), or remove "
                "the folder"
            )

    def read_id(self) -> str:
        """The run's id; empty where it has none yet.

        Raises:
            DataError: the file holds something else.
        """
        try:
            text = self.files.read(self.id_path.name).decode(errors="replace").strip()
        except MissingObjectError:
            return ""
        if not RUN_ID.fullmatch(text):
            raise DataError(f"{self.id_path}: {text[:20]!r} is not a run id (8 hex digits)")
        return text

    def write_id(self, run: str) -> None:
        """Write the run's id."""
        self.files.write(self.id_path.name, f"{run}\n".encode())

    def write_newest_checkpoint(self, address: str, step: int) -> None:
        """Remember the newest published checkpoint, so that its loss is noticed."""
        self._write_json(self.newest_checkpoint_path, {"address": address, "step": step})

    def read_newest_checkpoint(self) -> tuple[str, int] | None:
        """Address and step of the newest published checkpoint; None: there was none yet."""
        node = self._read_json(self.newest_checkpoint_path)
        if node is None:
            return None
        address, step = node.get("address"), node.get("step")
        if not isinstance(address, str) or not isinstance(step, int):
            raise DataError(
                f"{self.newest_checkpoint_path}: damaged; delete this file if the checkpoints "
                f"still exist"
            )
        return address, step

    def forget_newest_checkpoint(self) -> None:
        """The run starts over."""
        self.files.delete(self.newest_checkpoint_path.name)

    def write_config(self, config: RunConfig) -> None:
        """Write config.yaml, the resolved configuration."""
        self.files.write(self.config_path.name, config_yaml(config).encode())

    def read_config(self) -> RunConfig:
        """Read config.yaml back; ConfigError where another version's settings do not fit."""
        return load_saved_config(self.config_path)

    def read_config_dict(self) -> dict[str, Any]:
        """Read config.yaml as plain data, whatever version wrote it."""
        try:
            node = yaml.safe_load(self.files.read(self.config_path.name).decode())
        except (DataError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{self.config_path}: not readable: {first_line(error)}") from None
        if not isinstance(node, dict):
            raise ConfigError(f"{self.config_path}: expected sections such as `data:`")
        return node

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Write environment.json; see `gear_dist.runs.environment.collect_environment`."""
        self._write_json(self.environment_path, environment)

    def read_environment(self) -> dict[str, Any]:
        """Read environment.json; empty where there is none."""
        return self._read_json(self.environment_path) or {}

    def write_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Write evaluation.json."""
        self._write_json(self.evaluation_path, evaluation)

    def write_caption_scores(self, scores: Mapping[str, Any]) -> None:
        """Write captions.json."""
        self._write_json(self.caption_scores_path, scores)

    def read_evaluation(self) -> dict[str, Any] | None:
        """Read evaluation.json; None where the run has not been evaluated."""
        return self._read_json(self.evaluation_path)

    def write_status(
        self,
        state: State,
        step: int,
        total_steps: int,
        *,
        exit_code: int | None = None,
        reason: str = "",
        attempt: int | None = None,
        last_failure: str | None = None,
    ) -> None:
        """Replace status.json atomically; `updated` is now.

        `attempt` and `last_failure` stay as they are where they are None: the launcher knows them,
        and the worker writes the rest.
        """
        updated = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        status = Status(state, step, total_steps, exit_code, reason, updated)
        before = self.read_status() or status
        status = status._replace(
            attempt=before.attempt if attempt is None else attempt,
            last_failure=before.last_failure if last_failure is None else last_failure,
        )
        self._write_json(self.status_path, status._asdict())

    def read_status(self) -> Status | None:
        """Read status.json; None where the run has not started."""
        node = self._read_json(self.status_path)
        known = {key: value for key, value in (node or {}).items() if key in Status._fields}
        if not {"state", "step", "total_steps"} <= set(known):
            return None
        try:
            return build_record(Status, known)
        except ValueError as error:
            raise DataError(
                f"{self.status_path}: damaged: {error}; remove it, the run writes another"
            ) from None

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one record; see `MetricsFile.append`."""
        self._metrics.append(record)

    def read_metrics(self) -> list[dict[str, Any]]:
        """All records in order; a torn or unreadable line is left out."""
        return list(self._metrics.records())

    def rewind(self, step: int) -> None:
        """Drop what the run did after `step`, when it resumes there: metrics records and grids."""
        self._metrics.truncate(step)
        with disk_errors(self.grids):
            for grid in self.list_grids():
                if grid.step > step:
                    grid.path.unlink()

    def append_bad_samples(self, names: list[str]) -> None:
        """Add lines to bad_samples.txt; every rank does.

        Raises:
            StorageError: the disk refuses.
        """
        with disk_errors(self.bad_samples_path), self.bad_samples_path.open("a") as file:
            file.write("".join(f"{name}\n" for name in names))

    def reconstruction_grid_path(self, step: int) -> Path:
        """Where the grid of originals and reconstructions after `step` belongs."""
        return self.grids / f"reconstruction-{step:07d}.png"

    def sample_grid_path(self, step: int) -> Path:
        """Where the grid of generated images after `step` belongs."""
        return self.grids / f"samples-{step:07d}.png"

    def list_grids(self, kind: str = "") -> list[Grid]:
        """The grids by step, of one kind or of all."""
        found = [(_GRID_NAME.fullmatch(path.name), path) for path in self.grids.glob("*.png")]
        grids = [Grid(match["kind"], int(match["step"]), path) for match, path in found if match]
        return sorted(grid for grid in grids if kind in ("", grid.kind))

    def close(self) -> None:
        """Close metrics.jsonl; a later append opens it again."""
        self._metrics.close()

    def _write_json(self, path: Path, node: Mapping[str, Any]) -> None:
        self.files.write(path.name, (to_json(node, indent=2) + "\n").encode())

    def _read_json(self, path: Path) -> dict[str, Any] | None:
        try:
            data = self.files.read(path.name)
        except MissingObjectError:
            return None
        try:
            node = parse_json(data)
        except ValueError:
            node = None
        if not isinstance(node, dict):
            raise DataError(f"{path}: not a JSON object; remove the file to go without it")
        return node
