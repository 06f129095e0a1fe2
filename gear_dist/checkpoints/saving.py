"""Starts, awaits and reports the saves of a running training."""

from collections.abc import Callable, Iterable
from typing import Any

from gear_dist.checkpoints.manager import CheckpointManager
from gear_dist.checkpoints.owner import OwnershipError
from gear_dist.checkpoints.shards import TensorShard
from gear_dist.distributed import collectives
from gear_dist.errors import StorageError

_RECORDED = ("blocked_s", "took_s", "part_bytes")


class Saver:
    """A store, with what became of the saves. All methods but the records are collective."""

    def __init__(
        self,
        manager: CheckpointManager,
        say: Callable[[str], None],
        max_failed: int = 0,
        published: Callable[[str, int], None] = lambda address, step: None,
    ):
        """
        Args:
            say: takes a line about each save.
            max_failed: failures in a row that end the run; 0: no limit.
            published: takes the address and step of each checkpoint that is there from now on.
        """
        self._published = published
        self._manager = manager
        self._say = say
        self._max_failed = max_failed
        self._problem = ""
        self._taken = False
        self._failed = 0
        self._record: dict[str, float] = {}
        self.published_step = -1
        """Of the newest checkpoint that this process has published."""

    def save(self, step: int, state: dict[str, Any], shards: Iterable[TensorShard]) -> None:
        """Publish a checkpoint, or begin to. For errors see `check`."""
        self.wait()
        self._manager.save(step, state, shards)
        self.report()
        if not self._manager.is_saving:
            self.check()

    def wait(self) -> None:
        """Wait until the current save has ended. For errors see `check`."""
        self._manager.wait()
        self.report()
        self.check()

    def report(self) -> None:
        """Tell of the saves that have ended. A failed one costs nothing but itself, for now."""
        for result in self._manager.take_results():
            self._problem, self._taken = "", result.taken
            self._record = {f"checkpoint_{key}": getattr(result, key) for key in _RECORDED}
            message = f"checkpoint {self._manager.address}/{result.folder}"
            self._failed = self._failed + 1 if result.problem else 0
            if result.problem:
                self._problem = f"no checkpoint of step {result.step}: {result.problem}"
                message = f"WARNING: {self._problem}; earlier ones stay"
            else:
                self.published_step = result.step
                self._published(f"{self._manager.address}/{result.folder}", result.step)
            self._say(message)
            if result.notice:
                self._say(f"WARNING: {result.notice}")

    def check(self) -> None:
        """Where no save is under way, so that all ranks know the same.

        Raises:
            OwnershipError: the address is another's now.
            StorageError: too many saves in a row have failed.
        """
        too_many = 0 < self._max_failed <= self._failed
        if self._taken or too_many:
            # Where another worker is lost this raises: then the store is not to blame.
            collectives.barrier()
        if self._taken:
            raise OwnershipError(self._problem)
        if too_many:
            raise StorageError(
                f"checkpoint.max_failed_saves={self._max_failed}: {self._failed} saves in a row "
                f"have failed, the last: {self._problem}; repair the store: the same command "
                "resumes from the previous checkpoint"
            )

    def take_record(self) -> dict[str, float]:
        """Metrics of the newest save since the last call, and how many in a row have failed."""
        record, self._record = self._record, {}
        return {**record, "checkpoint_failed_saves": self._failed}

    def check_last(self) -> None:
        """At the end of the run.

        Raises:
            StorageError: the last checkpoint could not be written.
        """
        self.wait()
        if self._problem:
            # Where another worker is lost this raises: then the store is not to blame.
            collectives.barrier()
            raise StorageError(
                f"{self._problem}; the same command resumes from the previous checkpoint"
            )
