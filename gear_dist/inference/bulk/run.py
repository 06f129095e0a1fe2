"""A bulk run: the destination, the tars that are not there yet, and the npz at the end."""

from typing import NamedTuple

from gear_dist.distributed.task_pool import TaskPool, run_tasks
from gear_dist.errors import ConfigError, DataError
from gear_dist.inference.bulk.npz import NPZ_KEY, write_npz
from gear_dist.inference.bulk.plan import PLAN_KEY, BulkPlan, claim
from gear_dist.inference.bulk.tar_task import TarJob, find_finished, run_job
from gear_dist.progress import ImageProgress
from gear_dist.storage.base import Storage


class BulkResult(NamedTuple):
    """What a run has done."""

    num_made: int
    """Samples; the rest was there."""
    seconds: float


def generate_bulk(
    storage: Storage,
    model: str,
    plan: BulkPlan,
    class_names: tuple[str, ...],
    *,
    batch: int,
    workers: int,
    on_ray: bool = False,
    gpus: int = 0,
    npz: bool = True,
) -> BulkResult:
    """Make all samples of a plan, or those that a former run has not.

    Killed at any moment, the same call goes on: a tar appears whole or not at all, and the bytes do
    not depend on workers, kills or order.

    Args:
        storage: the destination.
        model: the model's folder, at the same path on every worker's machine.
        plan: what to make.
        class_names: of the classes, for metadata.
        batch: images that are generated at a time, at most; the plan has it too where bytes
            depend on it.
        workers: processes, or Ray tasks at a time.
        on_ray: whether the tasks are Ray's.
        gpus: GPUs of this machine that the processes share.
        npz: whether to write `samples.npz` at the end.

    Raises:
        ConfigError: the destination holds other samples. StorageError: it refuses a write; the
            same call goes on. DataError: the model's weights do not fit.
    """
    resumed = claim(storage, plan)
    missing = [tar for tar in range(plan.num_tars) if find_finished(storage, plan, tar) is None]
    progress = ImageProgress("sample", plan.num)
    num_missing = sum(len(plan.samples_of(tar)) for tar in missing)
    progress.advance(plan.num - num_missing, timed=False)
    pool = TaskPool(
        run_job,
        workers,
        on_ray,
        gpus=gpus,
        advice="use fewer --workers",
        name="sample_task",
    )
    try:
        for outcome in run_tasks(
            missing, lambda tar: TarJob(storage, model, plan, class_names, tar, batch), pool
        ):
            progress.advance(outcome.record.samples, timed=not outcome.found)
    except (ConfigError, DataError):
        if not resumed and len(missing) == plan.num_tars:
            _withdraw(storage, plan)
        raise
    finally:
        seconds = progress.finish()
    if npz and (missing or not storage.exists(NPZ_KEY)):
        write_npz(storage, plan)
    storage.remove_leftovers()
    return BulkResult(num_missing, seconds)


def _withdraw(storage: Storage, plan: BulkPlan) -> None:
    """Give the destination back where settings were refused before anything was made, so that the
    mended command may use it."""
    if all(find_finished(storage, plan, tar) is None for tar in range(plan.num_tars)):
        storage.delete(PLAN_KEY)
