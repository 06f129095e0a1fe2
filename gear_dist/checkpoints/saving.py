"""Saves of a run in progress: started, waited for, and told of."""

from collections.abc import Callable, Iterable
from typing import Any

from gear_dist import dist
from gear_dist.checkpoints.pieces import Piece
from gear_dist.checkpoints.store import CheckpointStore
from gear_dist.errors import StorageError

_RECORDED = ("blocked_s", "took_s", "part_bytes")


class Saver:
    """A store, with what became of the saves. All methods but `take_record` are collective."""

    def __init__(self, store: CheckpointStore, say: Callable[[str], None]):
        """Args: say: takes a line about each save."""
        self._store = store
        self._say = say
        self._problem = ""
        self._record: dict[str, float] = {}

    def save(self, step: int, facts: dict[str, Any], pieces: Iterable[Piece]) -> None:
        """Publish a checkpoint, or begin to."""
        self._store.save(step, facts, pieces)
        self.report()

    def wait(self) -> None:
        """Until what was begun has ended."""
        self._store.wait()
        self.report()

    def report(self) -> None:
        """Tell of the saves that have ended. A failed one costs nothing but itself, for now."""
        for result in self._store.take_results():
            self._problem = ""
            self._record = {f"checkpoint_{key}": getattr(result, key) for key in _RECORDED}
            message = f"checkpoint {self._store.address}/{result.folder}"
            if result.problem:
                self._problem = f"no checkpoint of step {result.step}: {result.problem}"
                message = f"WARNING: {self._problem}; the one before stays"
            self._say(message)

    def take_record(self) -> dict[str, float]:
        """Metrics of the newest save since the last call."""
        record, self._record = self._record, {}
        return record

    def check_last(self) -> None:
        """At the end of the run.

        Raises:
            StorageError: the last checkpoint could not be written.
        """
        self.wait()
        if self._problem:
            # Where another worker is lost this raises: then the store is not to blame.
            dist.barrier()
            raise StorageError(
                f"{self._problem}; the same command goes on from the checkpoint before"
            )
