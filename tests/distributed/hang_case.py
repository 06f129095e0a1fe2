"""`python hang_case.py WHERE ARGS...`: the command line with a part that is slow or stuck.

WHERE: `step` (the third step never ends), `stuck` (the first part of a checkpoint is never
written), or `slow` (each part takes longer than the limit, and moves on). The limit is LIMIT_S in
these places and as configured elsewhere, so that a busy machine's start is no hang.
"""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

from gear_dist.checkpoints import collective_progress
from gear_dist.cli.main import main
from gear_dist.distributed.hang_watchdog import HangWatchdog
from gear_dist.storage.local import FileStorage
from gear_dist.training.trainer import Trainer

LIMIT_S = 5.0
SLOW_S = 12.0
FOR_EVER_S = 600.0


def _set_limit(seconds: float) -> None:
    [watch] = _watches
    watch._timeout_s = seconds
    watch.beat()


_watches: list[HangWatchdog] = []


def _note_watches() -> None:
    whole = HangWatchdog.__enter__

    def enter(watch: HangWatchdog) -> HangWatchdog:
        _watches.append(watch)
        return whole(watch)

    HangWatchdog.__enter__ = enter  # type: ignore[method-assign]


def _hang_at_a_step() -> None:
    whole = Trainer.run_step

    def run_step(trainer: Trainer, *args: Any) -> bool:
        if trainer.step == 2:
            _set_limit(LIMIT_S)
            time.sleep(FOR_EVER_S)
        return whole(trainer, *args)

    Trainer.run_step = run_step  # type: ignore[method-assign]


def _write_slowly(*, moves: bool) -> None:
    whole = FileStorage.writer

    @contextlib.contextmanager
    def writer(storage: FileStorage, key: str) -> Iterator[BinaryIO]:
        with whole(storage, key) as stream:
            yield stream
            if "part-" not in key:
                return
            before = _watches[0]._timeout_s
            _set_limit(LIMIT_S)
            started = time.monotonic()
            while time.monotonic() < started + (SLOW_S if moves else FOR_EVER_S):
                time.sleep(0.2)
                storage.activity += moves
            _set_limit(before)

    FileStorage.writer = writer  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    where = sys.argv.pop(1)
    collective_progress.STALL_S = 3.0
    _note_watches()
    if where == "step":
        _hang_at_a_step()
    else:
        _write_slowly(moves=where == "slow")
    sys.exit(main(sys.argv[1:]))
