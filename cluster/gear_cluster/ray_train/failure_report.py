"""What ended the workers, in one line."""

import os
from pathlib import Path
from typing import NamedTuple

from gear_cluster.ray_train.coordinator import WorkerFailure
from gear_dist.distributed.hang_watchdog import HANG_MARK

NO_MEMORY = "Ray ended it because memory ran out"
GONE = "its process is gone (killed, out of memory, or a crash in native code)"

# What collectives raise where the other end has gone.
LOST_PEER = (
    "gloo/transport",
    "Connection reset by peer",
    "Connection closed by peer",
    "remote process exited",
    "communicator was aborted",
)


class LogEnds:
    """Where the logs of a run's workers ended when an attempt began."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._bytes = {path: path.stat().st_size for path in folder.glob("worker-*.log")}

    def hung(self) -> list[int]:
        """Ranks that have ended themselves since, because no step was made for too long."""
        found = [path for path in self.folder.glob("worker-*.log") if self._has_stacks(path)]
        return sorted(int(path.stem.removeprefix("worker-")) for path in found)

    def _has_stacks(self, path: Path) -> bool:
        with path.open("rb") as file:
            file.seek(self._bytes.get(path, 0))
            return any(line.startswith(HANG_MARK) for line in file)


class Crash(NamedTuple):
    """A crash in one line, and where to read on."""

    what: str
    where: str

    def __str__(self) -> str:
        return f"{self.what}; {self.where}"


def describe_crash(
    error: BaseException, failure: WorkerFailure | None, num_workers: int, logs: LogEnds
) -> Crash:
    """The likeliest cause: a hang, then a silent death, then the first error, then Ray's.

    A worker that was killed reports nothing, while its peers report lost connections.
    """
    of, folder = f"of {num_workers}", f"logs in {short(logs.folder)}"
    if hung := logs.hung():
        ranks = f"worker{'s' * (len(hung) > 1)} {', '.join(map(str, hung))} {of}"
        return Crash(
            f"{ranks} made no step within run.hang_timeout_s", f"stacks of all threads: {folder}"
        )
    if dead := find_dead_worker(error):
        return Crash(f"worker {dead[0]} {of} died: {dead[1]}", folder)
    if failure is not None and any(sign in failure.summary for sign in LOST_PEER):
        what = f"worker {failure.rank} {of} lost another: its process or its node is gone"
        return Crash(what, folder)
    if failure is not None:
        what = f"worker {failure.rank} {of} crashed: {failure.summary}"
        return Crash(what, f"traceback in {short(failure.log)}")
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return Crash(f"Ray Train failed: {lines[-1]}", folder)


def find_dead_worker(error: BaseException) -> tuple[int, str] | None:
    """Rank and cause of a worker process that ended without a word, in what fit() raised."""
    for rank, failure in sorted(getattr(error, "worker_failures", {}).items()):
        cause = getattr(failure, "health_check_failure", None)
        if cause is not None:
            return rank, _why_dead(str(cause))
        if type(failure).__name__ == "WorkerHealthCheckTimeoutError":
            return rank, "it does not answer"
    return None


def _why_dead(cause: str) -> str:
    if "OutOfMemory" in cause or "running low on memory" in cause:
        return NO_MEMORY
    if "node has died" in cause:
        return "its node is lost"
    return GONE


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Ray has ended a worker for its memory; it sends SIGTERM first."""
    dead = find_dead_worker(error)
    return dead is not None and dead[1] == NO_MEMORY


def is_preempted(error: BaseException) -> bool:
    """Whether a worker has died with a node that Ray was draining."""
    causes = [
        getattr(failure, "health_check_failure", failure)
        for failure in getattr(error, "worker_failures", {}).values()
    ]
    return any(getattr(cause, "preempted", False) for cause in causes)


def is_not_started(error: BaseException) -> bool:
    """Whether the workers did not start, because what was free has gone meanwhile."""
    from ray.train.v2._internal import exceptions

    cause = getattr(error, "controller_failure", None)
    kinds = (
        exceptions.WorkerGroupStartupTimeoutError,
        exceptions.WorkerGroupStartupFailedError,
        exceptions.InsufficientClusterResourcesError,
    )
    return isinstance(cause, kinds)


def short(path: str | Path) -> str:
    """Relative to the working folder where it lies below that, else as it is."""
    path = Path(os.path.normpath(path))
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
