"""Starts a run where its configuration says: in this process or on Ray. One worker function."""

import contextlib
import os
from collections.abc import Iterator

from gear_cluster.local_launcher import Worker, launch_local
from gear_cluster.rendezvous import is_first_process
from gear_dist.checkpoints.address import check_address
from gear_dist.config.data import DataConfig
from gear_dist.config.run import RunSection
from gear_dist.config.schema import RunConfig
from gear_dist.data.corpus import open_corpus
from gear_dist.distributed.worker_context import TrainResult, WorkerContext
from gear_dist.errors import EXIT_INTERRUPTED, UserError
from gear_dist.formatting import first_line
from gear_dist.runs.environment import gpu_driver, unseen_gpu
from gear_dist.runs.lock import run_lock
from gear_dist.runs.run_folder import RunFolder, State


def launch(
    config: RunConfig, worker: Worker | None = None, *, verbose: bool = False
) -> TrainResult:
    """Train as `config.run.launcher` says and return how it ended.

    Args:
        config: the resolved configuration.
        worker: runs in every process; default: the trainer's `train_worker`.
        verbose: also show the output of Ray and of the workers.

    Raises:
        UserError: of any worker, with its class and message; a crash of a worker as one line.
        ConfigError: another command trains in the run folder.
    """
    if checked := worker is None and _is_first(config.run):
        check_address(config.run, config.checkpoint, config.data)
    with _alone(config.run):
        if checked:
            _warn_of_unseen_gpu(config.run)
            _check_corpora(config.data)
        with _settled_status(config.run):
            result = _dispatch(config, worker or train, verbose)
        if result.state == "interrupted":
            _settle(config.run, "interrupted", EXIT_INTERRUPTED, result.reason)
    return result


def train(config: RunConfig, context: WorkerContext) -> TrainResult:
    """The trainer's worker function; DeepSpeed is imported where it runs, not in Ray's driver.

    Raises:
        DeviceMemoryError: the run does not fit into a device, by estimate or as it turned out.
    """
    import torch

    from gear_dist.distributed.device import choose_device
    from gear_dist.planning.memory_advice import (
        check_device_memory,
        is_out_of_memory,
        out_of_memory,
    )
    from gear_dist.training.trainer import train_worker

    device = choose_device(config.run.device, context.local_rank)
    # A run that has trained does fit, and a restart should not wait for the estimate.
    if device.type == "cuda" and context.rank == 0 and not RunFolder(config.run.folder).has_records:
        check_device_memory(
            config,
            context.world_size,
            *torch.cuda.mem_get_info(device),
            lambda line: print(line, flush=True),
        )
    try:
        return train_worker(config, context)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(config, context.world_size, first_line(error)) from None


def _alone(run: RunSection) -> contextlib.AbstractContextManager[None]:
    """The run folder, held for this command; of torchrun's processes the first one holds it."""
    return run_lock(run.folder) if _is_first(run) else contextlib.nullcontext()


def _is_first(run: RunSection) -> bool:
    return is_first_process(run.launcher)


def _warn_of_unseen_gpu(run: RunSection) -> None:
    """A machine with a GPU must not train on its CPU without a word."""
    import torch

    if run.device != "auto" or os.environ.get("RAY_ADDRESS") or torch.cuda.is_available():
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    problem, fix = unseen_gpu(torch.version.cuda, gpu_driver(), visible)
    if problem:
        print(
            f"WARNING: training on the CPU: {problem}: {fix}; run.device=cpu if that is meant",
            flush=True,
        )


def _check_corpora(data: DataConfig) -> None:
    """Find a wrong address or credential before Ray starts, or others are waited for."""
    for address in (*data.train_addresses, data.validation):
        if address:
            open_corpus(address, data.endpoint)


def _dispatch(config: RunConfig, worker: Worker, verbose: bool) -> TrainResult:
    if config.run.launcher == "local":
        return launch_local(config, worker)
    from gear_cluster.ray_train.driver import launch_ray

    return launch_ray(config, worker, verbose=verbose)


@contextlib.contextmanager
def _settled_status(run: RunSection) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        _settle(run, "failed", error.exit_code, str(error))
        raise
    except Exception as error:
        _settle(run, "failed", 1, f"{type(error).__name__}: {error}")
        raise


def _settle(run: RunSection, state: State, exit_code: int, reason: str) -> None:
    """Correct a status.json that still says running after its writer has died."""
    folder = RunFolder(run.folder)
    status = folder.read_status()
    if status is None or not _is_first(run):
        return
    if status.state not in ("running", "restarting"):
        return
    folder.write_status(state, status.step, status.total_steps, exit_code=exit_code, reason=reason)
