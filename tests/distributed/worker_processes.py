"""Real worker processes for tests: each runs one function under a gloo process group."""

import os
import pickle
import socket
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import wait
from typing import Any

TIMEOUT_S = 240


def run_workers(
    world_size: int, function: Callable[..., Any], *args: Any, timeout_s: float = TIMEOUT_S
) -> list[Any]:
    """Call `function(rank, *args)` in `world_size` new processes; their results by rank.

    The function must live in an importable helper module, not in a test file. A failure in any
    worker, a worker that dies, and a worker that hangs fail here with what it said.
    """
    context = get_context("spawn")
    port = free_port()
    processes, answers = [], []
    for rank in range(world_size):
        receiver, sender = context.Pipe(duplex=False)
        arguments = (rank, world_size, port, function, args, sender)
        process = context.Process(target=_run, args=arguments, daemon=True)
        process.start()
        sender.close()
        processes.append(process)
        answers.append(receiver)
    try:
        return [_answer(rank, answer, timeout_s) for rank, answer in enumerate(answers)]
    finally:
        for process in processes:
            process.join(1)
            process.kill()
            process.join()


def _answer(rank: int, receiver: Any, timeout_s: float) -> Any:
    if not wait([receiver], timeout_s):
        raise AssertionError(f"rank {rank} gave no answer in {timeout_s} s")
    try:
        ok, value = pickle.loads(receiver.recv_bytes())
    except EOFError:
        raise AssertionError(f"rank {rank} died without an answer") from None
    assert ok, f"rank {rank}:\n{value}"
    return value


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _run(rank, world_size, port, function, args, sender):
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }
    try:
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        dist.init_process_group("gloo", rank=rank, world_size=world_size)
        answer = (True, function(rank, *args))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        answer = (False, traceback.format_exc())
    sender.send_bytes(pickle.dumps(answer))
