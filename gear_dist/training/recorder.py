"""What rank 0 writes of a run as it goes: status, metric records, grids, published weights."""

from typing import Any

import torch

from gear_dist.config.compare import flatten
from gear_dist.config.loading import to_dict
from gear_dist.config.schema import RunConfig
from gear_dist.distributed.worker_context import TrainProgress, WorkerContext
from gear_dist.errors import EXIT_INTERRUPTED, StorageError, UserError
from gear_dist.inference.text_weights import METADATA_KEY as TEXT_ENCODER
from gear_dist.inference.weights import NetworkStates, save_run_weights
from gear_dist.runs.environment import collect_environment
from gear_dist.runs.loggers import MetricsLog, open_metrics_log
from gear_dist.runs.run_folder import RunFolder, State
from gear_dist.training.conditions import Conditions
from gear_dist.training.sample_grids import GridPainter


class RunRecorder:
    """Writes the run folder and tells the launcher; on other ranks than 0 no method does anything.

    Attributes:
        device: of this worker.
        step: steps that the run has done; records and failures are of this step.
        conditions: of the generator; set before `open`. Its weights tell their fingerprint.
    """

    conditions: Conditions

    def __init__(self, config: RunConfig, context: WorkerContext, device: torch.device):
        self._config = config
        self._settings = to_dict(config)
        self._context = context
        self.device = device
        self.step = 0
        self._folder = RunFolder(config.run.folder)
        self._log: MetricsLog | None = None
        self._owns_folder = False
        self._is_main = context.rank == 0

    def take_folder(self) -> None:
        """From here on the folder is this run's: failures may be written there."""
        self._owns_folder = self._is_main

    def open(self, environment: dict[str, Any]) -> None:
        """Begin to record after the current step; what the run did beyond it is dropped.

        Raises:
            DataError: the validation corpus, whose first images the grids show, is not there.
        """
        if not self._is_main:
            return
        self.rewind()
        names = frozenset(flatten(self._settings))
        self._folder.write_environment(
            collect_environment(self._config.run.seed, names, environment)
        )
        self._log = open_metrics_log(self._folder, self._config.log, self._settings)
        self._painter = GridPainter(
            self._config,
            self._folder,
            self._log,
            self.device,
            conditions=self.conditions,
            num_classes=len(environment["data"]["classes"]),
        )

    def rewind(self) -> None:
        """Drop records and grids of later steps, which are taken again."""
        if self._is_main:
            self._folder.rewind(self.step)

    def record(self, stage: str, numbers: dict[str, Any]) -> None:
        """One metric record, to all sinks and to the launcher."""
        if not self._is_main:
            return
        assert self._log is not None
        record: dict[str, Any] = {"step": self.step, "stage": stage, **numbers}
        self._log.log(record)
        self._refresh_status()
        shown = {key: float(v) for key, v in record.items() if isinstance(v, (int, float))}
        self._context.report(TrainProgress(self.step, self._total_steps, stage, shown))

    def _refresh_status(self) -> None:
        """Step and time of a run that is going; what a launcher has settled meanwhile stays."""
        status = self._folder.read_status()
        if status is not None and status.state == "running":
            self.write_status("running")

    def add_compute_dtypes(self, found: dict[str, dict[str, str]]) -> None:
        """What each network's layers computed in, for the environment record."""
        if not self._is_main:
            return
        environment = self._folder.read_environment()
        known = environment.get("compute_dtypes", {})
        self._folder.write_environment({**environment, "compute_dtypes": {**known, **found}})

    def remember_checkpoint(self, address: str, step: int) -> None:
        """A checkpoint was published."""
        if self._is_main:
            self._folder.write_newest_checkpoint(address, step)

    def say(self, stage: str, message: str) -> None:
        """Show a message line."""
        if self._is_main:
            self._context.report(TrainProgress(self.step, self._total_steps, stage, {}, message))

    def publish(self, states: NetworkStates, stage: str) -> None:
        """Weights for users, and grids at fixed seeds. The others wait at their next collective.

        A store that refuses the weights costs the run nothing else.
        """
        if not self._is_main:
            return
        try:
            metadata = {"config": self._settings, "step": self.step}
            if self.conditions.fingerprint is not None:
                metadata[TEXT_ENCODER] = self.conditions.fingerprint
            save_run_weights(self._folder.weights, states, metadata)
        except StorageError as error:
            self.say(stage, f"WARNING: the weights of step {self.step} were not written: {error}")
        # Drawing grids must not change the run's random state.
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            self._painter.paint(states, self.step)

    def write_status(self, state: State, **details: Any) -> None:
        """Write the run's state to status.json."""
        if self._is_main:
            self._folder.write_status(state, self.step, self._total_steps, **details)

    def finish(self, state: State, reason: str) -> None:
        """The end of this part of the run, without an error."""
        code = EXIT_INTERRUPTED if state == "interrupted" else 0
        self.write_status(state, exit_code=code, reason=reason)
        if self._log is not None:
            self._log.close(code)

    def fail(self, error: BaseException) -> None:
        """Leave the reason in status.json, unless the folder is another run's.

        Nothing has changed where a start is refused before its first step: a run that was done or
        interrupted still is.
        """
        if not self._owns_folder:
            return
        before = self._folder.read_status()
        if self._log is None and before is not None:
            if before.state in ("done", "interrupted"):
                return
            self.step = max(self.step, before.step)
        code = error.exit_code if isinstance(error, UserError) else 1
        reason = str(error) if isinstance(error, UserError) else repr(error)
        self.write_status("failed", exit_code=code, reason=reason)
        if self._log is not None:
            self._log.close(code)

    @property
    def _total_steps(self) -> int:
        return self._config.stages.total_steps
