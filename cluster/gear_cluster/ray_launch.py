"""launcher=ray: Ray Train runs the workers, this process shows progress and takes Ctrl-C."""

import logging
import os
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

from gear_cluster.local_launch import Worker, environment
from gear_cluster.progress_board import ProgressBoard, WorkerFailure
from gear_cluster.ray_cluster import ray_cluster
from gear_cluster.ray_watch import NOT_STARTED, Watch
from gear_cluster.stop import StopSignals
from gear_dist.config import RunConfig
from gear_dist.errors import ConfigError, UserError
from gear_dist.host import Outcome
from gear_dist.run_folder import RunFolder
from gear_dist.source_tree import source_folders

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
    # Signals wait while Ray starts: an exception in the midst of that leaves processes behind.
    with (
        environment(variables),
        StopSignals(_interrupt) as stop,
        ray_cluster(config, verbose),
        tempfile.TemporaryDirectory(prefix="gear-train-") as scratch,
    ):
        # Ray has taken SIGTERM for itself.
        stop.install()
        if stop.requested.is_set():
            return _given_up(config, NOT_STARTED)
        if not verbose:
            logging.getLogger("ray").setLevel(logging.ERROR)
        num_workers, use_gpu = choose_workers(config)
        _note_missing_cpus(num_workers)
        _note_passing_folder(config)
        run = _RayRun(config, worker, num_workers, use_gpu, verbose, scratch)
        watch = Watch(run.board, stop, grace_s)
        try:
            with watch:
                error = run.fit()
        except KeyboardInterrupt:
            return _given_up(config, watch.why_given_up or "a second Ctrl-C", watch.step)
        return run.judge(watch, error)


def _interrupt() -> None:
    # Ray's waiting calls look for signals every second, so an exception gets through.
    raise KeyboardInterrupt


def _given_up(config: RunConfig, why: str, step: int = 0) -> Outcome:
    sys.stderr.write(f"gear-dist: stopped at once, without a checkpoint: {why}\n")
    before = RunFolder(config.run.folder).read_status()
    step = max(step, before.step if before else 0)
    return Outcome("interrupted", step, f"{why}; no checkpoint was written")


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


class _RayRun:
    """One call of Ray Train's fit() with the board that its workers report to."""

    def __init__(
        self,
        config: RunConfig,
        worker: Worker,
        num_workers: int,
        use_gpu: bool,
        verbose: bool,
        scratch: str,
    ) -> None:
        import ray

        from gear_cluster.ray_worker import WorkerJob

        self._config = config
        self._num_workers = num_workers
        self._log_folder = (config.run.folder / "logs").absolute()
        name = f"gear-dist-{config.run.name}-{uuid.uuid4().hex[:8]}"
        self.board: Any = ray.remote(ProgressBoard).options(name=name, num_cpus=0).remote()
        job = WorkerJob(
            config=config,
            worker=worker,
            board=self.board,
            folder=os.getcwd(),
            log_folder=str(self._log_folder),
            command=sys.argv,
            verbose=verbose,
        )
        self._trainer = self._make_trainer(job, use_gpu, scratch)

    def _make_trainer(self, job: Any, use_gpu: bool, scratch: str) -> Any:
        import ray.train
        from ray.train.torch import TorchConfig, TorchTrainer

        from gear_cluster.ray_worker import run_worker

        # Type checkers see the classes of Train V1, which V2 replaces at run time.
        train: Any = ray.train

        class Trainer(TorchTrainer):
            def _register_sigint_handler(self, controller: Any) -> None:
                """Ray's would abort the workers at the first Ctrl-C; StopSignals has it."""

        def train_loop() -> None:
            run_worker(job)

        return Trainer(
            train_loop,
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=train.ScalingConfig(num_workers=self._num_workers, use_gpu=use_gpu),
            run_config=train.RunConfig(
                name=self._config.run.name,
                storage_path=scratch,
                failure_config=train.FailureConfig(max_failures=0),
                worker_runtime_env={"env_vars": worker_environment(self._config, use_gpu)},
            ),
        )

    def fit(self) -> Exception | None:
        """Train until the workers end; what Ray Train raised, if anything."""
        try:
            self._trainer.fit()
        except Exception as error:
            return error
        return None

    def judge(self, watch: Watch, error: Exception | None) -> Outcome:
        """The outcome that rank 0 reported, or the error that ended the run.

        Raises:
            UserError: see `launch_ray`.
        """
        state = watch.look()
        watch.close_line()
        if state.failure is not None and state.failure.user_error is not None:
            raise state.failure.user_error
        if error is not None:
            raise self._crash(state.failure, error) from None
        assert state.outcome is not None, "rank 0 returned without an outcome"
        return state.outcome

    def _crash(self, failure: WorkerFailure | None, error: Exception) -> WorkerCrashError:
        """One line for the likeliest cause: a silent death, then the first error, then Ray's.

        A worker that was killed reports nothing, while its peers report lost connections.
        """
        of, logs = f"of {self._num_workers}", _short(self._log_folder)
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
