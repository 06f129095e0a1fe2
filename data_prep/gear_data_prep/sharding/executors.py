"""Runs shard tasks, by processes or as Ray tasks; see `gear_dist.distributed.task_pool`."""

from collections.abc import Callable, Iterator

from gear_data_prep.sharding.plan import PlannedShard
from gear_data_prep.sharding.shard_writer import ShardJob, ShardOutcome, run_job
from gear_dist.distributed import task_pool
from gear_dist.distributed.task_pool import TaskPool

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
    advice = "use fewer --workers, or smaller --shard-bytes"
    pool = TaskPool(run_job, workers, on_ray, advice=advice, name="shard_task")
    return task_pool.run_tasks(shards, make_job, pool)
