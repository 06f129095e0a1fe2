"""One attempt of a run: one call of Ray Train's fit(), and what came of it."""

import os
import sys
import uuid
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gear_cluster.local_launcher import Worker
from gear_cluster.ray_train.capacity import WorkerCounts
from gear_cluster.ray_train.coordinator import CoordinatorState, RunCoordinator
from gear_cluster.ray_train.failure_report import (
    LogEnds,
    describe_crash,
    find_dead_worker,
    is_not_started,
    is_out_of_memory,
    is_preempted,
)
from gear_cluster.ray_train.monitor import AttemptMonitor
from gear_cluster.ray_train.stop_policies import GrowthPolicy, PreemptionPolicy, StopRequest
from gear_cluster.signals import StopSignals
from gear_dist.config.schema import RunConfig
from gear_dist.distributed.worker_context import TrainResult
from gear_dist.source_tree import source_folders


class RunPlan(NamedTuple):
    """What all attempts of a run have in common."""

    config: RunConfig
    worker: Worker
    worker_counts: WorkerCounts
    verbose: bool
    scratch: str
    """Folder for Ray Train's own records, which nobody reads."""

    @property
    def log_folder(self) -> Path:
        """Where workers write worker-RANK.log."""
        return (self.config.run.folder / "logs").absolute()


class AttemptEnd(NamedTuple):
    """How an attempt ended."""

    kind: Literal["finished", "restart", "not_started", "crashed"]
    """finished: the command ends with `result`; restart: the workers have stopped, and others
    take over; not_started: there was no capacity after all; crashed: counts as a failure."""
    reason: str
    result: TrainResult | None = None


class RayAttempt:
    """A group of workers with the coordinator that they report to."""

    def __init__(self, plan: RunPlan, num_workers: int) -> None:
        import ray

        self._plan = plan
        self._num_workers = num_workers
        self._logs = LogEnds(plan.log_folder)
        self._controller: Any = None
        # On the driver's node, because the coordinator must not be lost with another.
        self.driver_node: str = ray.get_runtime_context().get_node_id()
        here = {ray._raylet.RAY_NODE_ID_KEY: self.driver_node}  # type: ignore[attr-defined]
        name = f"gear-dist-{plan.config.run.name}-{uuid.uuid4().hex[:8]}"
        coordinator: Any = ray.remote(RunCoordinator)
        self.coordinator: Any = coordinator.options(
            name=name, num_cpus=0, label_selector=here
        ).remote()

    def monitor(self, stop: StopSignals, grace_s: float) -> AttemptMonitor:
        """The thread to run beside `fit`."""
        policies = (
            PreemptionPolicy(self.driver_node, self._plan.config.run.preemption_grace_s),
            GrowthPolicy(self._plan.worker_counts, self._num_workers, grace_s),
        )
        return AttemptMonitor(self.coordinator, stop, grace_s, policies, self._end)

    def fit(self) -> Exception | None:
        """Train until the workers end; what Ray Train raised, if anything."""
        try:
            self._make_trainer().fit()
        except Exception as error:
            return error
        return None

    def _make_trainer(self) -> Any:
        import ray.train
        from ray.train.torch import TorchTrainer

        from gear_cluster.ray_train.worker import WorkerJob, run_worker

        # Type checkers see the classes of Train V1, which V2 replaces at run time.
        train: Any = ray.train
        plan, attempt = self._plan, self
        job = WorkerJob(
            config=plan.config,
            worker=plan.worker,
            coordinator=self.coordinator,
            folder=os.getcwd(),
            log_folder=str(plan.log_folder),
            command=sys.argv,
            verbose=plan.verbose,
        )

        class Trainer(TorchTrainer):
            def _register_sigint_handler(self, controller: Any) -> None:
                """Ray's would abort the workers at the first Ctrl-C; StopSignals has it."""
                attempt._controller = controller

        def train_loop() -> None:
            run_worker(job)

        use_gpu = plan.worker_counts.use_gpu
        # Only the driver retries: Ray would reuse the coordinator, count preemptions its own way,
        # and retry user errors.
        no_retries = train.FailureConfig(
            max_failures=0, controller_failure_limit=0, max_preemption_failures=0
        )
        return Trainer(
            train_loop,
            torch_config=_torch_config("nccl" if use_gpu else "gloo"),
            scaling_config=train.ScalingConfig(num_workers=self._num_workers, use_gpu=use_gpu),
            run_config=train.RunConfig(
                name=plan.config.run.name,
                storage_path=plan.scratch,
                failure_config=no_retries,
                worker_runtime_env={
                    "env_vars": worker_environment(plan.config.run.threads, use_gpu)
                },
            ),
        )

    def _end(self) -> None:
        """Make fit() raise: the workers end with the controller that owns them."""
        import ray

        if self._controller is not None:
            ray.kill(self._controller)

    def end(self, monitor: AttemptMonitor, error: Exception | None) -> AttemptEnd:
        """How the attempt ended; see `classify_end`."""
        return classify_end(
            monitor.last_poll(), monitor.requested, error, self._num_workers, self._logs
        )

    def close(self) -> None:
        """End what the attempt has left on the cluster."""
        import ray

        self._end()
        ray.kill(self.coordinator)


def classify_end(
    state: CoordinatorState,
    requested: StopRequest | None,
    error: Exception | None,
    num_workers: int,
    logs: LogEnds,
) -> AttemptEnd:
    """How an attempt ended, by what its workers have reported and what fit() has raised.

    Raises:
        UserError: as a worker raised it.
    """
    # An error that follows from another worker's death is nothing that a user could mend.
    dead = error is not None and find_dead_worker(error) is not None
    if state.failure is not None and state.failure.user_error is not None and not dead:
        raise state.failure.user_error
    if error is None:
        assert state.result is not None, "rank 0 returned without a result"
        reason = requested.reason if requested else state.notice
        if (
            state.result.state == "done"
            or not reason
            or (requested and requested.cause == "signal")
        ):
            return AttemptEnd("finished", reason, state.result)
        return AttemptEnd("restart", reason)
    if is_not_started(error):
        return AttemptEnd("not_started", str(error).splitlines()[-1])
    notice = requested.reason if requested and requested.cause == "preemption" else state.notice
    if (is_preempted(error) or notice) and not is_out_of_memory(error):
        return AttemptEnd("restart", notice or "a node was taken away")
    return AttemptEnd("crashed", str(describe_crash(error, state.failure, num_workers, logs)))


def _torch_config(backend: str) -> Any:
    """Ray Train's set-up of torch.distributed, and ours of each worker's main thread.

    Local classes, because the actor that uses them may be unable to import this package.
    """
    from ray.train.torch import TorchConfig

    backend_cls: Any = TorchConfig().backend_cls

    class TrainBackend(backend_cls):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            def prepare() -> None:
                from gear_cluster.ray_train.worker import prepare_process

                prepare_process()

            worker_group.execute(prepare)
            super().on_start(worker_group, backend_config)

        def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
            """Ray's would wait half a minute for a worker that hangs; `run_worker` does it."""

    class TrainTorchConfig(TorchConfig):
        @property
        def backend_cls(self) -> Any:
            return TrainBackend

    return TrainTorchConfig(backend=backend)


def worker_environment(threads: int, use_gpu: bool) -> dict[str, str]:
    """Variables that must be set before a worker imports torch and DeepSpeed."""
    variables = {"OMP_NUM_THREADS": str(threads)}
    if not use_gpu:
        variables |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    folders = source_folders()
    if folders:
        rest = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
        variables["PYTHONPATH"] = os.pathsep.join([*folders, *rest])
    return variables
