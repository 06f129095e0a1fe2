"""How many workers a run may have, and how many the connected Ray cluster has room for."""

import time
from collections.abc import Mapping
from threading import Event
from typing import Any, NamedTuple

from gear_dist.config.run import RunSection
from gear_dist.config.training import EngineConfig
from gear_dist.errors import ConfigError

POLL_S = 0.5
# What workers have held is free again a moment after they have ended.
SETTLE_S = 5.0


class WorkerCounts(NamedTuple):
    """The numbers of workers that a run may have."""

    allowed: tuple[int, ...]
    """Ascending; the batch can be divided among each."""
    use_gpu: bool

    @property
    def least(self) -> int:
        """Below this the run waits."""
        return self.allowed[0]

    @property
    def most(self) -> int:
        """run.workers, or what it stands for."""
        return self.allowed[-1]

    @property
    def needs(self) -> dict[str, float]:
        """What a worker takes, as Ray Train's ScalingConfig has it."""
        return {"GPU": 1.0} if self.use_gpu else {"CPU": 1.0}

    def largest(self, capacity: int) -> int:
        """The most workers that fit into room for so many; 0: too little."""
        return max((size for size in self.allowed if size <= capacity), default=0)


def choose_worker_counts(run: RunSection, engine: EngineConfig) -> WorkerCounts:
    """What run.workers, run.min_workers and run.device mean on the connected cluster.

    Raises:
        ConfigError: CUDA is asked for and the cluster has none or too few, or the batch does not
            divide.
    """
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0))
    if run.device == "cuda" and gpus == 0:
        raise ConfigError("run.device=cuda, but the Ray cluster has no GPU: use cpu or auto")
    use_gpu = run.device != "cpu" and gpus > 0
    most = run.workers or (gpus if use_gpu else 2)
    least = run.min_workers or most
    if least > most:
        raise ConfigError(
            f"run.min_workers={least} is more than the {most} workers that run.workers=0 means "
            "on this cluster: set run.workers"
        )
    if use_gpu and least > gpus:
        raise ConfigError(
            f"run.workers={most} is more than the cluster's {gpus} GPUs: use at most {gpus}, "
            "run.min_workers, or run.device=cpu"
        )
    engine.micro_batch(most)
    allowed = tuple(size for size in range(least, most + 1) if _divides(engine, size))
    return WorkerCounts(allowed, use_gpu)


def _divides(engine: EngineConfig, num_workers: int) -> bool:
    try:
        engine.micro_batch(num_workers)
    except ConfigError:
        return False
    return True


def draining_nodes() -> dict[str, int]:
    """Ids of the nodes that are draining, with the time of it in ms since the epoch (0: unknown).

    Asks the cluster's GCS, as Ray Train's own watcher does: Ray has no public call for it, and
    `ray.train.get_preemption_info` is a barrier of all workers.
    """
    from ray._private.state import state

    return state.get_draining_nodes()


def count_capacity(needs: Mapping[str, float]) -> int:
    """Workers that could start now, on nodes that are to stay."""
    from ray._private.state import available_resources_per_node

    draining = draining_nodes()
    return sum(
        int(min(free.get(name, 0) // amount for name, amount in needs.items()))
        for node, free in available_resources_per_node().items()
        if node not in draining
    )


def wait_for_capacity(worker_counts: WorkerCounts, stop: Event) -> int:
    """The number of workers to start, as soon as there is room for enough; 0: `stop` was set.

    While there is not, an unfilled placement group tells an autoscaler what is missing.
    """
    settled = time.monotonic() + SETTLE_S
    demand: Any = None
    try:
        while not stop.is_set():
            capacity = count_capacity(worker_counts.needs)
            if demand is not None and demand.wait(0):
                capacity += worker_counts.least  # the group holds it already
            size = worker_counts.largest(capacity)
            if size == worker_counts.most or (size and time.monotonic() > settled):
                return size
            if demand is None and time.monotonic() > settled:
                demand = _demand(worker_counts, capacity)
            stop.wait(POLL_S)
        return 0
    finally:
        if demand is not None:
            _withdraw(demand)


def _demand(worker_counts: WorkerCounts, capacity: int) -> Any:
    from ray.util.placement_group import placement_group

    what = "GPU" if worker_counts.use_gpu else "CPU"
    print(
        f"waiting for capacity for {worker_counts.least} workers: the Ray cluster has {capacity} "
        f"free {what}s",
        flush=True,
    )
    return placement_group([worker_counts.needs] * worker_counts.least)


def _withdraw(demand: Any) -> None:
    from ray.util.placement_group import remove_placement_group

    remove_placement_group(demand)
