"""Rendezvous of launcher=local: this process's rank, and waiting for the others of WORLD_SIZE."""

import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

from gear_cluster.signals import StopSignals
from gear_dist.errors import EXIT_INTERRUPTED, ConfigError
from gear_dist.formatting import first_line

WARN_AFTER_S = 3.0
"""Processes that torchrun starts together meet sooner."""
LIMIT_S = 600.0
_TICK_S = 0.1
_END_S = 5.0
"""For the thread that waits, to end once it is given up."""
_ALONE = "to train in one process, unset WORLD_SIZE"


class Processes(NamedTuple):
    """This process among those of the run, as torchrun's variables say it."""

    rank: int
    world_size: int
    local_rank: int

    @property
    def others(self) -> list[int]:
        """The other ranks."""
        return [rank for rank in range(self.world_size) if rank != self.rank]


def read_processes() -> Processes:
    """What RANK, WORLD_SIZE and LOCAL_RANK say; without WORLD_SIZE, one process.

    Raises:
        ConfigError: they contradict each other, or the address of rank 0 is missing.
    """
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        return Processes(0, 1, _number("LOCAL_RANK", 0))
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise ConfigError(f"WORLD_SIZE={size}, but {name} is not set: use torchrun; {_ALONE}")
    rank, port = _number("RANK", 0), _number("MASTER_PORT", 0)
    if size < 1 or not 0 <= rank < size:
        raise ConfigError(f"RANK={rank} and WORLD_SIZE={size} contradict each other; {_ALONE}")
    if port > 65535:
        raise ConfigError(f"MASTER_PORT={port} is not a port; {_ALONE}")
    return Processes(rank, size, _number("LOCAL_RANK", 0))


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "").strip()
    if text and not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ConfigError(f"{name}={text} is not a whole number; {_ALONE}")
    return int(text) if text else default


def is_first_process(launcher: str) -> bool:
    """Whether this process speaks for the run: of launcher=ray there is one, whatever RANK is."""
    return launcher != "local" or read_processes().rank == 0


def rendezvous(processes: Processes, stop: StopSignals) -> Any:
    """The store of a run of several processes, when all of them have come.

    What waits inside torch is deaf to signals, so it waits in a thread of its own.

    Raises:
        ConfigError: rank 0 cannot listen or be reached, or a process has not come within LIMIT_S.
    """
    missing, result, given_up = processes.others, _ThreadResult(), threading.Event()
    threading.Thread(
        target=result.run, args=(lambda: _gather(processes, missing, given_up),), daemon=True
    ).start()
    start, told = time.monotonic(), False
    while not result.done.wait(_TICK_S):
        waited = time.monotonic() - start
        if stop.requested.is_set():
            _leave(f"gear-dist: {stop.reason}: ended before the first step, waiting for {missing}")
        if waited > LIMIT_S:
            line = f"{_waits_for(processes, missing)}, timed out after {LIMIT_S:.0f} s"
            given_up.set()
            if not result.done.wait(_END_S):
                _leave(f"gear-dist: {line}", ConfigError.exit_code)
            raise ConfigError(line)
        if waited > WARN_AFTER_S and not told:
            told = True
            print(f"gear-dist: {_waits_for(processes, missing)}", file=sys.stderr, flush=True)
    if result.error is not None:
        raise ConfigError(f"{_waits_for(processes, missing)}: {first_line(result.error)}")
    return result.value


class _ThreadResult:
    """What a function returns or raises in another thread."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.value: Any = None
        self.error: Exception | None = None

    def run(self, function: Callable[[], Any]) -> None:
        try:
            self.value = function()
        except Exception as error:
            self.error = error
        self.done.set()


def _gather(processes: Processes, missing: list[int], given_up: threading.Event) -> Any:
    """Wait for all; ranks that have come leave `missing`.

    Ends once `given_up`: a thread that is inside torch when Python ends takes the process down.
    """
    import torch.distributed as dist

    limit = timedelta(seconds=LIMIT_S)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # torchrun's agent listens, and knows which attempt this is.
        store, _, _ = next(dist.rendezvous("env://", timeout=limit))
    else:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(
            address,
            port,
            processes.world_size,
            is_master=processes.rank == 0,
            timeout=limit,
            wait_for_workers=False,
        )
    store = dist.PrefixStore("gear-rendezvous", store)
    store.set(f"arrived/{processes.rank}", "1")
    while missing and not given_up.is_set():
        for rank in [rank for rank in missing if store.check([f"arrived/{rank}"])]:
            missing.remove(rank)
        time.sleep(_TICK_S / 2)
    return store


def _waits_for(processes: Processes, missing: list[int]) -> str:
    shown = ", ".join(str(rank) for rank in missing[:8]) + (" ..." if len(missing) > 8 else "")
    where = f"MASTER_ADDR={os.environ['MASTER_ADDR']} MASTER_PORT={os.environ['MASTER_PORT']}"
    return (
        f"rank {processes.rank} of WORLD_SIZE={processes.world_size} is waiting at {where} for "
        f"rank {shown}; {_ALONE}"
    )


def _leave(line: str, code: int = EXIT_INTERRUPTED) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
    # A thread is inside torch, which would be torn down under it.
    os._exit(code)
