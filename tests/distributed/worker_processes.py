"""Real worker processes for tests: each runs functions under a gloo process group.

Processes are kept for the next call of their number, because starting them takes longer than most
of what they are asked for. A call that fails takes its processes along.
"""

import os
import pickle
import socket
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

TIMEOUT_S = 240


def run_workers(
    world_size: int,
    function: Callable[..., Any],
    *args: Any,
    timeout_s: float = TIMEOUT_S,
    fresh: bool = False,
) -> list[Any]:
    """Call `function(rank, *args)` in `world_size` processes; their results by rank.

    The function must live in an importable helper module, not in a test file. A failure in any
    worker, a worker that dies, and a worker that hangs fail here with what it said.

    Args:
        fresh: in new processes, which end with the call; for what measures its process.
    """
    workers = _WORKERS.pop(world_size, None)
    if fresh and workers is not None:
        _WORKERS[world_size], workers = workers, None
    workers = workers or _Workers(world_size)
    try:
        results = workers.call(function, args, timeout_s)
    except BaseException:
        workers.close()
        raise
    if fresh:
        workers.close()
    else:
        _WORKERS[world_size] = workers
    return results


class _Workers:
    """Processes of one group, all idle or all at one call."""

    def __init__(self, world_size: int):
        context = get_context("spawn")
        port = free_port()
        self._processes, self._pipes = [], []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            arguments = (rank, world_size, port, theirs)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], timeout_s: float) -> Any:
        request = pickle.dumps((function, args, dict(os.environ), Path.cwd()))
        for pipe in self._pipes:
            pipe.send_bytes(request)
        return [_answer(rank, pipe, timeout_s) for rank, pipe in enumerate(self._pipes)]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


_WORKERS: dict[int, _Workers] = {}
"""Idle ones, by their number; daemons, so that they end with the tests."""


def _answer(rank: int, pipe: Connection, timeout_s: float) -> Any:
    if not wait([pipe], timeout_s):
        raise AssertionError(f"rank {rank} gave no answer in {timeout_s} s")
    try:
        ok, value = pickle.loads(pipe.recv_bytes())
    except EOFError:
        raise AssertionError(f"rank {rank} died without an answer") from None
    assert ok, f"rank {rank}:\n{value}"
    return value


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _serve(rank: int, world_size: int, port: int, pipe: Connection) -> None:
    own = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }
    os.environ |= own
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    while True:
        try:
            function, args, environment, folder = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        os.environ.clear()
        os.environ |= environment | own
        os.chdir(folder)
        # What a call leaves behind is not the next one's.
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(False)
        torch.manual_seed(0)
        try:
            answer = (True, function(rank, *args))
            dist.barrier()
        except BaseException:
            answer = (False, traceback.format_exc())
        pipe.send_bytes(pickle.dumps(answer))
