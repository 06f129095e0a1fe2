"""Runs shard tasks: in this process, in a process pool, or as plain Ray tasks.

All three give the same bytes: a task depends on its job alone. Tasks that die with their worker
are run again; few are handed out at a time, so that a plan of any length costs little memory.
"""

import contextlib
import itertools
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any

from gear_data_prep.sharding.plan import PlannedShard
from gear_data_prep.sharding.shard_writer import ShardJob, ShardOutcome, run_job
from gear_dist.distributed.private_ray import private_ray
from gear_dist.errors import ConfigError, StorageError
from gear_dist.redaction import redact_text

POOL_ATTEMPTS = 3
_TASKS_AHEAD = 2
"""Tasks that wait for each worker."""
_RAY_RETRIES = 10

MakeJob = Callable[[PlannedShard], ShardJob]


def run_tasks(
    shards: tuple[PlannedShard, ...], make_job: MakeJob, workers: int, *, on_ray: bool = False
) -> Iterator[ShardOutcome]:
    """Run the tasks of all shards; outcomes as they come.

    Args:
        shards: the plan's.
        make_job: a shard's job, made when its turn comes.
        workers: processes, or parallel Ray tasks.
        on_ray: whether to use the Ray cluster that RAY_ADDRESS names, else a local one.

    Raises:
        StorageError: worker processes keep dying.
        DataError, StorageError: as the tasks.
    """
    if on_ray:
        yield from _run_on_ray(shards, make_job, workers)
    elif workers == 1 or len(shards) == 1:
        yield from (run_job(make_job(planned)) for planned in shards)
    else:
        yield from _run_in_pools(shards, make_job, min(workers, len(shards)))


def _run_in_pools(
    shards: tuple[PlannedShard, ...], make_job: MakeJob, workers: int
) -> Iterator[ShardOutcome]:
    """Each time that a worker dies a new pool takes over what is left."""
    done: set[int] = set()
    for _ in range(POOL_ATTEMPTS):
        left = (planned for planned in shards if planned.shard not in done)
        try:
            for outcome in _pool_outcomes(left, make_job, workers):
                done.add(outcome.summary.info.shard)
                yield outcome
            return
        except BrokenProcessPool:
            continue
    raise StorageError(
        f"worker processes died {POOL_ATTEMPTS} times; probably out of memory: use fewer "
        "--workers, or smaller --shard-bytes; the same command continues"
    )


def _pool_outcomes(
    shards: Iterator[PlannedShard], make_job: MakeJob, workers: int
) -> Iterator[ShardOutcome]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare_worker) as pool:
        running: set[Future[ShardOutcome]] = set()
        try:
            for planned in itertools.islice(shards, workers * _TASKS_AHEAD):
                running.add(pool.submit(run_job, make_job(planned)))
            while running:
                finished, running = wait_for(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
                    for planned in itertools.islice(shards, 1):
                        running.add(pool.submit(run_job, make_job(planned)))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _prepare_worker() -> None:
    """Ctrl-C is the parent's to handle; a killed parent takes its workers with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _run_on_ray(
    shards: tuple[PlannedShard, ...], make_job: MakeJob, workers: int
) -> Iterator[ShardOutcome]:
    import ray

    with contextlib.nullcontext() if ray.is_initialized() else _ray_of(workers):
        task = _ray_task(ray)
        left = iter(shards)

        def start(count: int) -> list[Any]:
            return [
                task.remote(pickle.dumps(make_job(planned)))
                for planned in itertools.islice(left, count)
            ]

        running = start(workers)
        while running:
            finished, running = ray.wait(running, num_returns=1)
            yield _result(ray, finished[0])
            running += start(1)


def _ray_task(ray: Any) -> Any:
    """The task: run elsewhere where its worker or node dies; an error of its own is an answer.

    A job travels as bytes and the function by value, because `ray job submit --working-dir .`
    makes only gear_dist importable, and that the rest.
    """

    def run_pickled_job(data: bytes) -> Any:  # a class would be looked up before the path is set
        from gear_dist.source_tree import use_source_tree

        use_source_tree()
        from gear_data_prep.sharding.shard_writer import run_job

        return run_job(pickle.loads(data))

    remote = ray.remote(num_cpus=1, max_retries=_RAY_RETRIES)(run_pickled_job)
    return remote.options(name="shard_task")


def _result(ray: Any, reference: Any) -> ShardOutcome:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from None
    except ray.exceptions.RayError as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise StorageError(f"Ray gave up on a shard task: {line}") from None


@contextlib.contextmanager
def _ray_of(workers: int) -> Iterator[None]:
    """Connect to the cluster that RAY_ADDRESS names, else start a private one."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        with private_ray(workers):
            yield
        return
    import ray

    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        line = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"RAY_ADDRESS={redact_text(address)}: cannot connect: {line}") from None
    try:
        yield
    finally:
        ray.shutdown()
