"""Runs tasks: in this process, in a process pool, or as plain Ray tasks.

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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, NamedTuple, TypeVar

from gear_dist.distributed.ray_cluster import command_cluster
from gear_dist.errors import StorageError

POOL_ATTEMPTS = 3
_TASKS_AHEAD = 2
"""Tasks that wait for each worker."""
_RAY_RETRIES = 10

Item = TypeVar("Item")


class TaskPool(NamedTuple):
    """Who runs tasks, and how."""

    run: Callable[[Any], Any]
    """Makes an outcome of a job. A function of a module, and idempotent: both travel pickled, and
    a job whose worker dies is run again."""
    workers: int
    """Processes, or parallel Ray tasks; 1 without Ray: this process."""
    on_ray: bool = False
    """Whether to use the Ray cluster that RAY_ADDRESS names, else a local one."""
    gpus: int = 0
    """GPUs of this machine: each process sees one of them, each Ray task is given one; 0: none."""
    advice: str = "use fewer --workers"
    """What helps where workers keep dying."""
    name: str = "task"
    """Of a task among Ray's processes."""


def run_tasks(
    items: Iterable[Item], make_job: Callable[[Item], Any], pool: TaskPool
) -> Iterator[Any]:
    """Run a task for each item; outcomes as they come.

    Args:
        items: what the tasks are about.
        make_job: an item's job, made when its turn comes.
        pool: who runs them.

    Raises:
        StorageError: worker processes keep dying.
        UserError: as the tasks.
    """
    items = list(items)
    if pool.on_ray:
        yield from _run_on_ray(items, make_job, pool)
    elif pool.workers == 1 or len(items) <= 1:
        yield from (pool.run(make_job(item)) for item in items)
    else:
        yield from _run_in_pools(items, make_job, pool)


def _run_in_pools(
    items: list[Item], make_job: Callable[[Item], Any], pool: TaskPool
) -> Iterator[Any]:
    """Each time that a worker dies a new pool takes over what is left."""
    done: set[int] = set()
    for _ in range(POOL_ATTEMPTS):
        left = ((i, item) for i, item in enumerate(items) if i not in done)
        try:
            for i, outcome in _pool_outcomes(left, make_job, pool, min(pool.workers, len(items))):
                done.add(i)
                yield outcome
            return
        except BrokenProcessPool:
            continue
    raise StorageError(
        f"worker processes died {POOL_ATTEMPTS} times; probably out of memory: {pool.advice}; "
        "the same command continues"
    )


def _pool_outcomes(
    items: Iterator[tuple[int, Item]],
    make_job: Callable[[Item], Any],
    pool: TaskPool,
    workers: int,
) -> Iterator[tuple[int, Any]]:
    context = multiprocessing.get_context("spawn")
    devices: Any = context.SimpleQueue()
    for device in _devices_of(workers, pool.gpus):
        devices.put(device)
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_prepare_worker, initargs=(devices,)
    ) as executor:
        running: dict[Future[Any], int] = {}

        def start(count: int) -> None:
            for i, item in itertools.islice(items, count):
                job = make_job(item)
                try:
                    running[executor.submit(pool.run, job)] = i
                except OSError as error:  # no process, or the pool breaks while one is started
                    raise BrokenProcessPool(str(error)) from error

        try:
            start(workers * _TASKS_AHEAD)
            while running:
                finished, _ = wait_for(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    i = running.pop(future)
                    yield i, future.result()
                    start(1)
        except (KeyboardInterrupt, BrokenProcessPool):
            # A task may take long, and leaves nothing behind where it is cut off. Of a broken pool
            # the executor ends those that it knows of at that moment, and then waits for all: a
            # worker that is being started meanwhile would wait for work for ever (CPython 3.11).
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def _devices_of(workers: int, gpus: int) -> list[str | None]:
    """What CUDA_VISIBLE_DEVICES is to be in each process; None: as it is."""
    if not gpus:
        return [None] * workers
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    visible = named.split(",") if named else [str(i) for i in range(gpus)]
    return [visible[i % gpus] for i in range(workers)]


def _prepare_worker(devices: Any) -> None:
    """Ctrl-C is the parent's to handle; a killed parent takes its workers with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    device = devices.get()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _run_on_ray(
    items: list[Item], make_job: Callable[[Item], Any], pool: TaskPool
) -> Iterator[Any]:
    import ray

    with contextlib.nullcontext() if ray.is_initialized() else command_cluster(pool.workers):
        task = _ray_task(ray, pool)
        left = iter(items)

        def start(count: int) -> list[Any]:
            return [
                task.remote(pickle.dumps((pool.run, make_job(item))))
                for item in itertools.islice(left, count)
            ]

        running = start(pool.workers)
        while running:
            finished, running = ray.wait(running, num_returns=1)
            yield _result(ray, finished[0])
            running += start(1)


def _ray_task(ray: Any, pool: TaskPool) -> Any:
    """The task: run elsewhere where its worker or node dies; an error of its own is an answer.

    A job travels as bytes and the function by value, because `ray job submit --working-dir .`
    makes only gear_dist importable, and that the rest.
    """

    def run_pickled_job(data: bytes) -> Any:  # a class would be looked up before the path is set
        from gear_dist.source_tree import use_source_tree

        use_source_tree()
        run, job = pickle.loads(data)
        return run(job)

    remote = ray.remote(
        num_cpus=1,
        num_gpus=1 if pool.gpus else 0,
        max_retries=_RAY_RETRIES,
        max_calls=0,  # keep a process with its loaded networks; with a GPU Ray would end it
    )(run_pickled_job)
    return remote.options(name=pool.name)


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from None
    except ray.exceptions.RayError as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise StorageError(f"Ray gave up on a task: {line}") from None
