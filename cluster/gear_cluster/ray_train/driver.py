"""launcher=ray: attempts of Ray Train until the run is done; this process shows progress, takes
Ctrl-C, and decides after each attempt whether and with how many workers training continues."""

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from gear_cluster.local_launcher import Worker
from gear_cluster.ray_train.attempt import AttemptEnd, RayAttempt, RunPlan
from gear_cluster.ray_train.capacity import choose_worker_counts, wait_for_capacity
from gear_cluster.ray_train.cluster import ray_cluster
from gear_cluster.ray_train.failure_budget import FailureBudget, newest_step
from gear_cluster.ray_train.monitor import NOT_STARTED, AttemptMonitor
from gear_cluster.signals import StopSignals
from gear_dist.config.run import RunSection
from gear_dist.config.schema import RunConfig
from gear_dist.distributed.environment_variables import environment
from gear_dist.distributed.worker_context import TrainResult
from gear_dist.errors import UserError
from gear_dist.runs.run_folder import RunFolder, State
from gear_dist.storage.private_folder import private_folder

STOP_GRACE_S = 600.0


class WorkerCrashError(UserError):
    """A worker ended by an error that is not the user's; its log holds the traceback."""


def train_variables(hang_timeout_s: int) -> dict[str, str]:
    """What Ray Train reads in the driver and hands on, where the user has not set it.

    Polling workers more often than every 2 s ends runs and detects failures sooner; workers keep
    the driver's working directory; lost capacity is noticed in 15 s.
    """
    wanted = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(hang_timeout_s or 10**9),
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
    }
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def launch_ray(
    config: RunConfig, worker: Worker, *, verbose: bool = False, grace_s: float = STOP_GRACE_S
) -> TrainResult:
    """Run `worker` in Ray Train workers until it is done, through crashes and preemptions.

    Raises:
        UserError: as a worker raised it.
        ConfigError: the cluster cannot run what run.workers and run.device ask for.
        WorkerCrashError: workers have crashed more than run.max_failures times without progress.
    """
    # Signals are deferred while Ray starts: an exception there would leak processes.
    with (
        environment(train_variables(config.run.hang_timeout_s)),
        StopSignals(_interrupt) as stop,
        ray_cluster(config.run.workers, verbose),
        private_folder("gear-train-") as scratch,
    ):
        # Ray has replaced the SIGTERM handler.
        stop.install()
        if stop.requested.is_set():
            return _stopped_without_checkpoint(config.run, NOT_STARTED)
        if not verbose:
            logging.getLogger("ray").setLevel(logging.ERROR)
        plan = RunPlan(
            config, worker, choose_worker_counts(config.run, config.engine), verbose, str(scratch)
        )
        _warn_of_temporary_root(config.run)
        attempts = _Attempts(plan, stop, grace_s)
        try:
            return attempts.run()
        except KeyboardInterrupt:
            return attempts.stop_now()


def _interrupt() -> None:
    # Ray's waiting calls look for signals every second, so an exception gets through.
    raise KeyboardInterrupt


def _stopped_without_checkpoint(run: RunSection, why: str, step: int = 0) -> TrainResult:
    sys.stderr.write(f"gear-dist: stopped immediately, without a checkpoint: {why}\n")
    before = RunFolder(run.folder).read_status()
    step = max(step, before.step if before else 0)
    return TrainResult("interrupted", step, f"{why}; no checkpoint was written")


def _warn_of_temporary_root(run: RunSection) -> None:
    """Inside `ray job submit` the working folder is a copy that goes when the job's files go."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not run.folder.is_absolute():
        print(
            f"run.root={run.root} is inside this job's temporary copy of the working directory "
            f"({Path.cwd()}): set run.root to a persistent directory shared by all nodes",
            flush=True,
        )


def _resuming(run: RunSection) -> RunSection:
    """run.resume=none forbids to resume an earlier command's run, not this command's own."""
    return replace(run, resume="auto") if run.resume == "none" else run


class _Attempts:
    """Starts a run again and again until it is over."""

    def __init__(self, plan: RunPlan, stop: StopSignals, grace_s: float) -> None:
        self._plan = plan
        self._stop = stop
        self._grace_s = grace_s
        self._folder = RunFolder(plan.config.run.folder)
        self._budget = FailureBudget(plan.config.run.max_failures)
        self._number = 1
        self._monitor: AttemptMonitor | None = None

    def run(self) -> TrainResult:
        """The outcome that ends the command.

        Raises:
            UserError: see `launch_ray`.
        """
        self._reset_attempt_number()
        while num_workers := wait_for_capacity(self._plan.worker_counts, self._stop.requested):
            end = self._attempt(num_workers)
            if end.kind == "finished":
                assert end.result is not None
                return end.result
            if end.kind == "crashed":
                self._after_crash(end.reason)
            elif end.kind == "restart":
                self._restart(end.reason)
        step = self._newest_step()
        return TrainResult("interrupted", step, f"{self._stop.reason} between attempts")

    def _attempt(self, num_workers: int) -> AttemptEnd:
        attempt = RayAttempt(self._plan, num_workers)
        self._monitor = monitor = attempt.monitor(self._stop, self._grace_s)
        try:
            with monitor:
                error = attempt.fit()
            return attempt.end(monitor, error)
        finally:
            attempt.close()

    def stop_now(self) -> TrainResult:
        """The outcome where a second Ctrl-C, or the end of a grace period, has ended `run`."""
        monitor = self._monitor
        why = (monitor and monitor.why_forced) or "a second Ctrl-C"
        step = monitor.step if monitor else 0
        return _stopped_without_checkpoint(self._plan.config.run, why, step)

    def _after_crash(self, reason: str) -> None:
        """Wait a little, or give up.

        Raises:
            WorkerCrashError: run.max_failures is used up.
        """
        budget = self._budget
        if not budget.spend(self._newest_step()):
            if budget.failures > 1:
                reason += f" (failure {budget.failures} without a new checkpoint)"
            self._write_status("failed", exit_code=WorkerCrashError.exit_code, reason=reason)
            raise WorkerCrashError(reason)
        self._restart(
            f"{reason} (failure {budget.failures} of at most {budget.max_failures})", reason
        )
        self._stop.requested.wait(budget.backoff_s())

    def _restart(self, reason: str, failure: str | None = None) -> None:
        self._number += 1
        config = self._plan.config
        self._plan = self._plan._replace(config=replace(config, run=_resuming(config.run)))
        step = self._newest_step()
        print(f"{reason}: attempt {self._number} resumes from step {step}", flush=True)
        self._write_status("restarting", reason=reason, attempt=self._number, last_failure=failure)

    def _newest_step(self) -> int:
        config = self._plan.config
        return newest_step(config.run, config.checkpoint, config.data.endpoint)

    def _reset_attempt_number(self) -> None:
        """The numbers of another command's attempts."""
        status = self._folder.read_status()
        if status is not None and status.attempt > 1:
            self._write_status(status.state, reason=status.reason, attempt=1)

    def _write_status(self, state: State, **details: Any) -> None:
        """Correct status.json between attempts, where a worker has written one.

        A run that starts again stands at its newest checkpoint, any other where it came to.
        """
        status = self._folder.read_status()
        if status is not None:
            step = self._newest_step() if state == "restarting" else status.step
            self._folder.write_status(state, step, status.total_steps, **details)
