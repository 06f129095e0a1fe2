"""What runs inside a Ray Train worker around the one worker function."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import ray
import ray.train
import torch

from gear_cluster.local_launcher import Worker
from gear_cluster.ray_train.coordinator import WorkerFailure
from gear_dist.config.schema import RunConfig
from gear_dist.distributed.network_interface import use_interface
from gear_dist.distributed.worker_context import TrainProgress
from gear_dist.errors import UserError
from gear_dist.formatting import class_and_line


class WorkerJob(NamedTuple):
    """What the driver hands to every worker."""

    config: RunConfig
    worker: Worker
    coordinator: Any
    """Handle of the RunCoordinator actor."""
    folder: str
    """The driver's working folder, which relative paths are meant from."""
    log_folder: str
    """Where workers write worker-RANK.log."""
    command: list[str]
    """The driver's command line, for the run's record."""
    verbose: bool
    """Output goes to the driver's terminal through Ray in place of the log file."""


terminated = threading.Event()
"""Set once this worker process was sent SIGTERM."""


def prepare_process() -> None:
    """What must be done in a worker's main thread before torch.distributed starts."""
    use_interface(ray.util.get_node_ip_address())
    take_sigterm()


def take_sigterm() -> None:
    """Turn SIGTERM into a stop request; Ray's handler would exit without a checkpoint.

    Only a process's main thread may do this, and Ray runs the worker function in another.
    """
    raylet = os.getppid()

    def heed(*_: object) -> None:
        # The kernel sends it too when the node's raylet has died: the node is lost, not leaving.
        if os.getppid() != raylet:
            os._exit(1)
        terminated.set()

    signal.signal(signal.SIGTERM, heed)


class RayContext:
    """A `WorkerContext` that reports to the coordinator and stops when it or SIGTERM says so."""

    def __init__(self, coordinator: Any) -> None:
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.local_rank: int = context.get_local_rank()
        self._coordinator = coordinator
        self._stop = threading.Event()
        threading.Thread(target=self._wait, name="stop-request", daemon=True).start()
        threading.Thread(target=self._give_notice, name="sigterm", daemon=True).start()

    def _give_notice(self) -> None:
        terminated.wait()
        self._coordinator.give_notice.remote(f"worker {self.rank} was sent SIGTERM")

    def _wait(self) -> None:
        # The coordinator ends with its driver, and Ray then ends this worker: that is a stop too.
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self._coordinator.wait_for_stop.remote())
        self._stop.set()

    def report(self, progress: TrainProgress) -> None:
        """Send progress to the driver without waiting for it."""
        self._coordinator.publish.remote(progress)

    def stop_requested(self) -> bool:
        """Whether the driver asked to stop; reads a local flag."""
        return self._stop.is_set()


def run_worker(job: WorkerJob) -> None:
    """Run the worker function; the coordinator has its result or failure before Ray."""
    if Path(job.folder).is_dir():
        os.chdir(job.folder)
    sys.argv[:] = job.command
    rank = ray.train.get_context().get_world_rank()
    log = Path(job.log_folder) / f"worker-{rank}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    if not job.verbose:
        _redirect_output(log)
    try:
        torch.set_num_threads(job.config.run.threads)
        context = RayContext(job.coordinator)
        ray.get(job.coordinator.begin.remote(rank, ray.get_runtime_context().get_node_id()))
        result = job.worker(job.config, context)
        if rank == 0:
            ray.get(job.coordinator.finish.remote(result))
        torch.distributed.destroy_process_group()
    except BaseException as error:
        with log.open("a") as file:
            traceback.print_exc(file=file)
        failure = WorkerFailure(rank, class_and_line(error), str(log), _user_error(error))
        ray.get(job.coordinator.fail.remote(failure))
        raise


def _user_error(error: BaseException) -> UserError | None:
    return error if isinstance(error, UserError) else None


def _redirect_output(log: Path) -> None:
    """Send this process's output, also that of C++ code and of fatal signals, to its log."""
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)
    faulthandler.enable(file=2)
