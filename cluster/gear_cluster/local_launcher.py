"""launcher=local: this process is the worker, alone or as one of several under torchrun."""

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterator

from gear_cluster.progress import ProgressPrinter
from gear_cluster.rendezvous import Processes, read_processes, rendezvous
from gear_cluster.signals import StopSignals
from gear_dist.config.schema import RunConfig
from gear_dist.distributed import collectives
from gear_dist.distributed.device import choose_device
from gear_dist.distributed.environment_variables import environment, loopback_collectives
from gear_dist.distributed.worker_context import TrainProgress, TrainResult, WorkerContext
from gear_dist.errors import EXIT_INTERRUPTED, ConfigError

Worker = Callable[[RunConfig, WorkerContext], TrainResult]


class LocalContext:
    """A `WorkerContext` whose stop request is a signal to this process."""

    def __init__(self, rank: int, world_size: int, local_rank: int, stop: StopSignals) -> None:
        self.rank = rank
        self.world_size = world_size
        self.local_rank = local_rank
        self._stop = stop
        self._printer = ProgressPrinter()

    def report(self, progress: TrainProgress) -> None:
        """Print progress."""
        self._printer.show(progress)

    def stop_requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self._stop.requested.is_set()

    def close(self) -> None:
        """End the progress line."""
        self._printer.close()


@contextlib.contextmanager
def process_group(
    device: str, stop: StopSignals, processes: Processes
) -> Iterator[tuple[int, int, int]]:
    """Initialise torch.distributed (gloo or nccl); yields (rank, world_size, local_rank).

    Under torchrun its variables say who this is; alone, the group has this one process, which
    listens on loopback only.
    """
    import torch
    import torch.distributed as dist

    backend = "nccl" if device == "cuda" else "gloo"
    rank, world_size, local_rank = processes
    if device == "cuda":
        torch.cuda.set_device(local_rank)
    variables = {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(local_rank)}
    if world_size == 1:
        # A store that opens its own port listens on all interfaces, whatever its host name.
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        store = dist.TCPStore(
            "127.0.0.1", port, 1, is_master=True, master_listen_fd=listener.detach()
        )
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        with environment(loopback_collectives()):
            dist.init_process_group(backend, store=store, rank=0, world_size=1)
    else:
        store = rendezvous(processes, stop)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    try:
        with environment(variables):
            yield rank, world_size, local_rank
    finally:
        collectives.destroy_process_group()


def _leave_at_once() -> None:
    sys.stderr.write("\ngear-dist: stopped at once, without a checkpoint\n")
    sys.stderr.flush()
    # A collective that waits for a peer never returns to Python, so no exception would do.
    os._exit(EXIT_INTERRUPTED)


def launch_local(config: RunConfig, worker: Worker) -> TrainResult:
    """Run `worker` in this process.

    Raises:
        ConfigError: run.workers contradicts how many processes there are, or not all arrive.
    """
    processes = read_processes()
    world_size = processes.world_size
    if config.run.workers not in (0, world_size):
        raise ConfigError(
            f"run.workers={config.run.workers}, but run.launcher=local runs {world_size} here: "
            f"use torchrun --nproc-per-node {config.run.workers}, or run.launcher=ray"
        )
    os.environ.setdefault("OMP_NUM_THREADS", str(config.run.threads))
    if config.run.device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import torch

    device = choose_device(config.run.device).type
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    torch.set_num_threads(config.run.threads)
    with (
        StopSignals(force_stop=_leave_at_once) as stop,
        process_group(device, stop, processes) as (rank, size, local),
    ):
        context = LocalContext(rank, size, local, stop)
        try:
            return worker(config, context)
        finally:
            context.close()
