"""launcher=ray: Ray Train runs the workers, this process shows progress and takes Ctrl-C."""

import logging
import os
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gear_cluster.local_launch import Worker, environment
from gear_cluster.progress import ProgressPrinter
from gear_cluster.progress_board import BoardState, ProgressBoard, WorkerFailure
from gear_cluster.ray_cluster import ray_cluster
from gear_cluster.stop import StopSignals
from gear_dist.config import RunConfig
from gear_dist.errors import ConfigError, UserError
from gear_dist.host import Outcome
from gear_dist.source_tree import source_folders

POLL_S = 0.3
STOP_GRACE_S = 600.0
# Ray Train reads these in the driver and hands them on. A shorter look at the workers than its
# 2 s ends runs and notices failures sooner; workers stay in the folder that paths are meant from.
TRAIN_VARIABLES = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


class WorkerCrashError(UserError):
    """A worker ended by an error that is not the user's; its log holds the traceback."""


def launch_ray(
    config: RunConfig, worker: Worker, *, verbose: bool = False, grace_s: float = STOP_GRACE_S
) -> Outcome:
    """Run `worker` in Ray Train workers and wait for them.

    Raises:
        UserError: as a worker raised it.
        ConfigError: the cluster cannot run what run.workers and run.device ask for.
        WorkerCrashError: a worker died or raised anything else.
    """
    variables = {name: os.environ.get(name, value) for name, value in TRAIN_VARIABLES.items()}
    with environment(variables), ray_cluster(config, verbose):
        if not verbose:
            logging.getLogger("ray").setLevel(logging.ERROR)
        num_workers, use_gpu = choose_workers(config)
        _note_missing_cpus(num_workers)
        _note_passing_folder(config)
        fit = _Fit(config, worker, num_workers, use_gpu, verbose)
        try:
            with _insisting() as stop:
                return _Watch(fit, stop, grace_s).until_end()
        finally:
            fit.close()


def choose_workers(config: RunConfig) -> tuple[int, bool]:
    """(number of workers, whether each has a GPU) on the connected cluster.

    Raises:
        ConfigError: CUDA is asked for and the cluster has none, or the batch does not divide.
    """
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0))
    if config.run.device == "cuda" and gpus == 0:
        raise ConfigError("run.device=cuda, but the Ray cluster has no GPU: use cpu or auto")
    use_gpu = config.run.device != "cpu" and gpus > 0
    num_workers = config.run.workers or (gpus if use_gpu else 2)
    if use_gpu and num_workers > gpus:
        raise ConfigError(
            f"run.workers={num_workers} is more than the cluster's {gpus} GPUs: use at most "
            f"{gpus}, or run.device=cpu"
        )
    config.engine.micro_batch(num_workers)
    return num_workers, use_gpu


def _note_missing_cpus(num_workers: int) -> None:
    """Say why nothing happens: Ray waits without a word for nodes that may or may not come."""
    import ray

    cpus = int(ray.cluster_resources().get("CPU", 0))
    if cpus < num_workers:
        print(f"waiting for {num_workers} CPUs: the Ray cluster has {cpus}", flush=True)


def _note_passing_folder(config: RunConfig) -> None:
    """Inside `ray job submit` the working folder is a copy that goes when the job's files go."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not Path(config.run.root).is_absolute():
        print(
            f"run.root={config.run.root} is below this job's temporary copy of the working folder "
            f"({Path.cwd()}): set run.root to a folder that stays and that all nodes share",
            flush=True,
        )


def worker_environment(config: RunConfig, use_gpu: bool) -> dict[str, str]:
    """Variables that must be set before a worker imports torch and DeepSpeed."""
    variables = {"OMP_NUM_THREADS": str(config.run.threads)}
    if not use_gpu:
        variables |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    folders = source_folders()
    if folders:
        rest = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
        variables["PYTHONPATH"] = os.pathsep.join([*folders, *rest])
    return variables


class _Fit:
    """Ray Train's fit() in a side thread: the main thread must stay free for signals."""

    def __init__(
        self, config: RunConfig, worker: Worker, num_workers: int, use_gpu: bool, verbose: bool
    ) -> None:
        import ray

        self.log_folder = (config.run.folder / "logs").absolute()
        self.num_workers = num_workers
        self.error: BaseException | None = None
        self._scratch = tempfile.TemporaryDirectory(prefix="gear-train-")
        name = f"gear-dist-{config.run.name}-{uuid.uuid4().hex[:8]}"
        self.board: Any = ray.remote(ProgressBoard).options(name=name, num_cpus=0).remote()
        self._trainer = self._make_trainer(config, worker, use_gpu, verbose)
        self._thread = threading.Thread(target=self._run, name="ray-train", daemon=True)
        self._thread.start()

    def _make_trainer(self, config: RunConfig, worker: Worker, use_gpu: bool, verbose: bool) -> Any:
        import ray.train
        from ray.train.torch import TorchConfig, TorchTrainer

        from gear_cluster.ray_worker import WorkerJob, run_worker

        job = WorkerJob(
            config=config,
            worker=worker,
            board=self.board,
            folder=os.getcwd(),
            log_folder=str(self.log_folder),
            command=sys.argv,
            verbose=verbose,
        )

        # Type checkers see the classes of Train V1, which V2 replaces at run time.
        train: Any = ray.train

        def train_loop() -> None:
            run_worker(job)

        return TorchTrainer(
            train_loop,
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=train.ScalingConfig(num_workers=self.num_workers, use_gpu=use_gpu),
            run_config=train.RunConfig(
                name=config.run.name,
                storage_path=self._scratch.name,
                failure_config=train.FailureConfig(max_failures=0),
                worker_runtime_env={"env_vars": worker_environment(config, use_gpu)},
            ),
        )

    def _run(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:
            # Judged in the main thread.
            self.error = error

    def running(self) -> bool:
        """Whether fit() has not returned."""
        return self._thread.is_alive()

    def look(self) -> BoardState:
        """What workers reported since the last look."""
        import ray

        return ray.get(self.board.look.remote())

    def request_stop(self, reason: str) -> None:
        """Ask the workers to stop with a checkpoint."""
        import ray

        ray.get(self.board.request_stop.remote(reason))

    def close(self) -> None:
        """Remove Ray Train's scratch folder."""
        self._scratch.cleanup()


@contextmanager
def _insisting() -> Iterator[StopSignals]:
    def insist() -> None:
        # Ray's wait calls return to Python often enough, so an exception can tidy up.
        raise KeyboardInterrupt

    with StopSignals(insist) as stop:
        yield stop


class _Watch:
    """The main thread's loop: shows what comes, passes a stop on, judges the end."""

    def __init__(self, fit: _Fit, stop: StopSignals, grace_s: float) -> None:
        self._fit = fit
        self._stop = stop
        self._grace_s = grace_s
        self._printer = ProgressPrinter()
        self._step = 0

    def until_end(self) -> Outcome:
        """Watch until the workers have ended, were given up, or a second Ctrl-C came."""
        try:
            deadline = self._watch()
        except KeyboardInterrupt:
            return self._give_up("a second Ctrl-C")
        finally:
            self._printer.close()
        if deadline:
            return self._give_up(f"workers did not stop within {self._grace_s:.0f} s")
        return self._judge()

    def _watch(self) -> bool:
        """Returns whether the time to stop cleanly ran out."""
        asked_at: float | None = None
        while self._fit.running():
            self._show(self._fit.look())
            if self._stop.requested.is_set() and asked_at is None:
                asked_at = time.monotonic()
                self._printer.say(f"{self._stop.reason}: stopping with a checkpoint ...")
                self._fit.request_stop(self._stop.reason)
            if asked_at is not None and time.monotonic() - asked_at > self._grace_s:
                return True
            time.sleep(POLL_S)
        return False

    def _show(self, state: BoardState) -> None:
        for progress in state.progress:
            self._step = progress.step
            self._printer.show(progress)

    def _judge(self) -> Outcome:
        state = self._fit.look()
        self._show(state)
        self._printer.close()
        failure, error = state.failure, self._fit.error
        if failure is not None and failure.user_error is not None:
            raise failure.user_error
        if error is not None:
            raise self._crash(failure, error) from None
        assert state.outcome is not None, "rank 0 returned without an outcome"
        return state.outcome

    def _crash(self, failure: WorkerFailure | None, error: BaseException) -> WorkerCrashError:
        """One line for the likeliest cause: a silent death, then the first error, then Ray's.

        A worker that was killed reports nothing, while its peers report lost connections.
        """
        of, logs = f"of {self._fit.num_workers}", _short(self._fit.log_folder)
        dead = find_dead_worker(error)
        if dead is not None:
            rank, why = dead
            return WorkerCrashError(f"worker {rank} {of} died: {why}; logs in {logs}")
        if failure is not None:
            return WorkerCrashError(
                f"worker {failure.rank} {of} crashed: {failure.summary}; "
                f"traceback in {_short(failure.log)}"
            )
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return WorkerCrashError(f"Ray Train failed: {lines[-1]}; logs in {logs}")

    def _give_up(self, why: str) -> Outcome:
        sys.stderr.write(f"gear-dist: stopped at once, without a checkpoint: {why}\n")
        return Outcome("interrupted", self._step, f"{why}; no checkpoint was written")


def _short(path: str | Path) -> str:
    """Relative to the working folder where it lies below that, else as it is."""
    path = Path(os.path.normpath(path))
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def find_dead_worker(error: BaseException) -> tuple[int, str] | None:
    """Rank and cause of a worker process that ended without a word, in what fit() raised."""
    for rank, failure in sorted(getattr(error, "worker_failures", {}).items()):
        cause = getattr(failure, "health_check_failure", None)
        if cause is not None:
            text = str(cause)
            starved = "OutOfMemory" in text or "running low on memory" in text
            return rank, "Ray ended it because memory ran out" if starved else (
                "its process is gone (killed, out of memory, or a crash in native code)"
            )
    return None
