"""Tasks in processes: what dies is run again, whenever it dies."""

import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor

import pytest

from gear_dist.distributed.task_pool import TaskPool, run_tasks


def square(number: int) -> int:
    time.sleep(0.2)
    return number * number


@pytest.mark.parametrize("pause_s", [0.0, 0.01, 0.5])
def test_a_worker_that_starts_while_another_dies_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, pause_s: float
) -> None:
    """The executor ends the workers that it knows of, and then waits for one more, for ever."""
    start = ProcessPoolExecutor._spawn_process
    killed: list[int] = []

    def start_late(executor: ProcessPoolExecutor) -> None:
        if executor._processes and not killed:
            killed.extend(executor._processes)
            os.kill(killed[0], signal.SIGKILL)
            time.sleep(pause_s)
        start(executor)

    monkeypatch.setattr(ProcessPoolExecutor, "_spawn_process", start_late)
    found: list[int] = []
    pool = TaskPool(square, workers=2)
    thread = threading.Thread(
        target=lambda: found.extend(run_tasks(range(4), int, pool)), daemon=True
    )
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "a worker is waited for that nobody ends"
    assert sorted(found) == [0, 1, 4, 9]
    assert killed
