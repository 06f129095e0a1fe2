"""Long-running work on all ranks: while any rank makes progress, no rank's hang watchdog fires."""

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from gear_dist.distributed import collectives
from gear_dist.errors import UserError

Result = TypeVar("Result")

ROUND_S = 1.0
"""Between two times that ranks tell each other how far they are."""
STALL_S = 60.0
"""Without progress for so long, work counts as stuck. Longer than a silent request may last."""


class StallTimer:
    """Feeds the hang watchdog while a counter grows."""

    def __init__(self, beat: Callable[[], None]) -> None:
        self._beat = beat
        self._count = -1
        self._since = 0.0

    def update(self, count: int) -> None:
        """Take in how far the work is."""
        now = time.monotonic()
        if count != self._count:
            self._count, self._since = count, now
        if now - self._since < STALL_S:
            self._beat()


def run_with_progress(
    work: Callable[[], Result],
    activity: Callable[[], int],
    report: Callable[[int], None],
    group: Any = None,
) -> list[Result]:
    """Every rank's result of its own work, by rank. Collective.

    Meanwhile the ranks exchange how far each is, so that none takes another's slowness for a hang.

    Args:
        work: runs in a thread of its own.
        activity: grows while the work moves on.
        report: takes the sum of all ranks' activity, about once a second.
        group: process group of all ranks; None: the default one.

    Raises:
        Exception: what the work of the first rank that failed has raised.
    """
    ended = threading.Event()
    found: list[Any] = [None, None]
    own: list[Exception] = []

    def run() -> None:
        try:
            found[0] = work()
        except UserError as error:
            found[1] = error
        except Exception as error:
            # The others must learn of it, and not every error can be sent.
            own.append(error)
            found[1] = RuntimeError(f"{type(error).__name__}: {error}")
        ended.set()

    threading.Thread(target=run, name="checkpoint-work", daemon=True).start()
    while True:
        over = ended.wait(ROUND_S)
        statuses = collectives.gather_objects(
            (over, activity(), *(found if over else (None, None))), group
        )
        report(sum(count for _, count, _, _ in statuses))
        if all(over for over, _, _, _ in statuses):
            break
    for error in (*own, *(error for _, _, _, error in statuses)):
        if error is not None:
            raise error
    return [result for _, _, result, _ in statuses]
