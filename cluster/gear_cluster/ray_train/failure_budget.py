"""Retry policy: how many failures are allowed and the backoff between restarts."""

import json
import random
from collections.abc import Callable

from gear_dist.config.run import CheckpointConfig, RunSection
from gear_dist.errors import DataError

FIRST_BACKOFF_S = 2.0
LONGEST_BACKOFF_S = 60.0


class FailureBudget:
    """Counts the failures since the last new checkpoint."""

    def __init__(self, max_failures: int, draw: Callable[[], float] = random.random) -> None:
        self.max_failures = max_failures
        self.failures = 0
        """Since the last progress."""
        self._step = 0
        self._draw = draw

    def spend(self, step: int) -> bool:
        """Count a failure; whether training may start again.

        Args:
            step: of the newest checkpoint; where it is newer than at the last failure, the count
                starts over.
        """
        self.failures = 1 if step > self._step else self.failures + 1
        self._step = step
        return self.failures <= self.max_failures

    def backoff_s(self) -> float:
        """Seconds until the next attempt: doubled with each failure, less up to a half by chance,
        so that runs which a shared cause has ended do not come back all at once."""
        longest = min(FIRST_BACKOFF_S * 2.0 ** (self.failures - 1), LONGEST_BACKOFF_S)
        return longest * (1 - self._draw() / 2)


def newest_step(run: RunSection, checkpoint: CheckpointConfig, endpoint: str) -> int:
    """Step of the newest published checkpoint, which the next attempt resumes from; 0: none.

    Args:
        endpoint: data.endpoint.
    """
    from gear_dist.checkpoints.address import checkpoint_storage
    from gear_dist.checkpoints.layout import POINTER

    try:
        pointer = json.loads(checkpoint_storage(run, checkpoint, endpoint).read(POINTER))
        return int(pointer["step"])
    except (DataError, ValueError, KeyError, TypeError):
        return 0
