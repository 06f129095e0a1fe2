"""The checkpoints of a run: every rank writes its part, then rank 0 the manifest and the pointer.

A thread of each rank writes, agrees with the others and publishes. With asynchronous saving,
training continues meanwhile: what is saved is copied first.
"""

import secrets
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch.distributed
import xxhash
from torch import Tensor

from gear_dist.checkpoints.collective_progress import StallTimer, run_with_progress
from gear_dist.checkpoints.layout import (
    DAMAGED,
    MANIFEST,
    POINTER,
    CheckpointManifest,
    DamagedCheckpointError,
    PartRecord,
    Published,
    folder_name,
    part_name,
    stored_key,
)
from gear_dist.checkpoints.listing import look
from gear_dist.checkpoints.owner import Ownership, OwnershipError
from gear_dist.checkpoints.reader import CheckpointReader
from gear_dist.checkpoints.retention import Retention
from gear_dist.checkpoints.safetensors_writer import Sink, write_tensors
from gear_dist.checkpoints.shards import TensorShard
from gear_dist.distributed import collectives
from gear_dist.errors import DataError, UserError
from gear_dist.formatting import class_and_line, first_line
from gear_dist.storage.base import MissingObjectError, Storage
from gear_dist.storage.json_files import to_json

_POLL_S = 0.2


class UnusableCheckpointsError(DataError):
    """There are checkpoints, and none can be used."""


class SaveResult(NamedTuple):
    """How a save ended; the same on every rank."""

    step: int
    folder: str
    problem: str
    """Why nothing was published; empty where it was."""
    blocked_s: float
    """How long it held up this rank's training."""
    took_s: float
    """From its start to its publication."""
    part_bytes: int
    """Of this rank's part."""
    taken: bool = False
    """Whether this run has lost ownership of the address."""
    notice: str = ""
    """A warning about older checkpoints (pruning failed)."""


class CheckpointManager:
    """Saves and finds the checkpoints of one run. Created and called on all ranks.

    Attributes:
        skipped_checkpoints: a line each, what was wrong with those that `open_newest` did not open.
    """

    def __init__(
        self,
        storage: Storage,
        retention: Retention,
        ownership: Ownership | None,
        *,
        asynchronous: bool = False,
        beat: Callable[[], None] = lambda: None,
    ):
        """Look for what is there. Collective.

        Args:
            ownership: of the address, on rank 0.
            beat: called while a save is waited for and moves on.

        Raises:
            DataError: what is there cannot be read.
        """
        self._storage = storage
        self._retention = retention
        self._ownership = ownership
        self._asynchronous = asynchronous
        self._beat = beat
        self._group: Any = None
        if collectives.world_size() > 1:
            # A group of its own, because the thread's collectives run beside the training's.
            self._group = torch.distributed.new_group(backend="gloo")
        self._run, self._sequence = collectives.from_rank_0(self._read_run_and_sequence)
        self.skipped_checkpoints: list[str] = []
        self._failed: list[str] = []
        self._thread: threading.Thread | None = None
        self._results: list[SaveResult] = []
        self._written_bytes = 0
        self._activity = 0

    def _read_run_and_sequence(self) -> tuple[str, int]:
        """The run's id, and the newest checkpoint's number. On rank 0."""
        assert self._ownership is not None, "rank 0 holds the address"
        newest = look(self._storage).all_published()[-1:]
        return self._ownership.owner.run, newest[0].manifest.sequence if newest else 0

    @property
    def address(self) -> str:
        """Where the checkpoints are."""
        return self._storage.address

    def close(self) -> None:
        """Let go of the address."""
        if self._ownership is not None:
            self._ownership.close()

    # -- finding ----------------------------------------------------------------------------

    def published(self) -> list[Published]:
        """This run's whole checkpoints, oldest first, without a look into their parts.

        Raises:
            DataError: something could not be read.
        """
        return look(self._storage).usable(self._run)

    def open_newest(self) -> CheckpointReader | None:
        """The newest good checkpoint; None: there is none at all. Collective.

        All ranks open the same one: a checkpoint that fails its checksums on any rank is passed
        over on all; see `skipped_checkpoints`.

        Raises:
            UnusableCheckpointsError: there are some, and all are damaged.
            UserError: one could not be read.
        """
        folders, problems = collectives.from_rank_0(self._list_candidates)
        self.skipped_checkpoints, self._failed = problems, []
        for folder in reversed(folders):
            reader, problem = open_verified(self._storage, folder, self._beat)
            if reader is not None:
                # Only once one verifies: if none does, this machine may be at fault.
                self.mark_damaged()
                return reader
            problems.append(problem)
            self._failed.append(folder)
        if problems:
            raise UnusableCheckpointsError(
                f"{self.address}: none of the {len(problems)} checkpoints there can be used "
                f"({problems[-1]}): restore one, or leave them and start over by run.resume=none"
            )
        return None

    def _list_candidates(self) -> tuple[list[str], list[str]]:
        """Folders of whole checkpoints, oldest first, and what is wrong with the others."""
        contents = look(self._storage)
        problems = [*contents.unreadable.values(), *(text for _, text in contents.damaged)]
        return [item.folder for item in contents.usable(self._run)], problems

    def mark_damaged(self) -> None:
        """Keep checkpoints that `open_newest` found damaged from counting towards retention.

        Collective.
        """
        collectives.on_rank_0(self._mark_failed)

    def _mark_failed(self) -> None:
        for folder in self._failed:
            try:
                self._storage.write(f"{folder}/{DAMAGED}", to_json({"run": self._run}).encode())
            except UserError as error:
                warnings.warn(f"{folder} was not marked as damaged: {error}", stacklevel=2)

    # -- saving -----------------------------------------------------------------------------

    def save(self, step: int, state: dict[str, Any], shards: Iterable[TensorShard]) -> None:
        """Publish this step's checkpoint, or begin to. Collective; see `take_results`.

        A save that is still under way is waited for first.

        Args:
            state: what is saved besides tensors; rank 0's value is used.
            shards: this rank's. Those that are replicated are dealt out among the ranks.
        """
        started = time.monotonic()
        self.wait()
        attempt = collectives.broadcast_object(secrets.token_hex(3))
        folder = folder_name(step, self._run, attempt)
        self._sequence += 1
        manifest = CheckpointManifest(step, self._sequence, [], state, self._run, folder)
        tensors = self._snapshot(shards)
        released = time.monotonic() if self._asynchronous else None
        self._thread = threading.Thread(
            target=self._publish,
            args=(manifest, tensors, started, released),
            name="checkpoint",
            daemon=True,
        )
        self._thread.start()
        if not self._asynchronous:
            self.wait()

    def wait(self) -> None:
        """Wait for the current save. A slow save that makes progress does not count as a hang."""
        stall_timer = StallTimer(self._beat)
        while self._thread is not None:
            self._thread.join(_POLL_S)
            if not self._thread.is_alive():
                self._thread = None
            stall_timer.update(self._activity)

    @property
    def is_saving(self) -> bool:
        """Whether a save may be under way; the same on every rank."""
        return self._thread is not None

    def take_results(self) -> list[SaveResult]:
        """Saves that have ended since the last call, oldest first."""
        taken, self._results = self._results, []
        return taken

    def _snapshot(self, shards: Iterable[TensorShard]) -> dict[str, Tensor]:
        """This rank's tensors on the CPU, apart from the live ones where training continues."""
        rank, world_size = collectives.rank(), collectives.world_size()
        dealt = 0
        tensors = {}
        for shard in shards:
            if shard.replicated:
                dealt += 1
                if dealt % world_size != rank:
                    continue
            values = shard.values.detach()
            key = stored_key(shard.key, shard.start)
            tensors[key] = values.to("cpu", copy=self._asynchronous)
        return tensors

    def _publish(
        self,
        manifest: CheckpointManifest,
        tensors: dict[str, Tensor],
        started: float,
        released: float | None,
    ) -> None:
        part, problem, taken, notice = None, "", False, ""
        try:
            part, notice = self._write_and_agree(manifest, tensors)
        except OwnershipError as error:
            problem, taken = _reason(error), True
        except Exception as error:  # e.g. a lost peer; training will fail too
            problem = _reason(error)
        now = time.monotonic()
        blocked = (released or now) - started
        size = part.bytes if part else 0
        result = SaveResult(
            manifest.step, manifest.folder, problem, blocked, now - started, size, taken, notice
        )
        self._results.append(result)

    def _write_and_agree(
        self, manifest: CheckpointManifest, tensors: dict[str, Tensor]
    ) -> tuple[PartRecord, str]:
        """Returns: this rank's part, and what went wrong besides.

        Raises:
            Exception: what went wrong on any rank, on all of them.
        """
        parts = self._together(lambda: self._write_part(manifest.folder, tensors))
        whole = manifest._replace(parts=parts)
        notices = self._together(
            lambda: self._write_manifest(whole) if collectives.rank() == 0 else ""
        )
        return parts[collectives.rank()], notices[0]

    def _together(self, work: Callable[[], Any]) -> list[Any]:
        def see(activity: int) -> None:
            self._activity = activity

        return run_with_progress(
            work, lambda: self._written_bytes + self._storage.activity, see, self._group
        )

    def _write_part(self, folder: str, tensors: dict[str, Tensor]) -> PartRecord:
        name = part_name(collectives.rank())
        with self._storage.writer(f"{folder}/{name}") as stream:
            sink = _HashingSink(stream, self._count_written)
            write_tensors(sink, tensors.items(), {})
        return PartRecord(name, sink.bytes, sink.xxh3.hexdigest())

    def _count_written(self, count: int) -> None:
        self._written_bytes += count

    def _write_manifest(self, manifest: CheckpointManifest) -> str:
        """Write the manifest, which completes the checkpoint, then prune old ones. On rank 0.

        Returns: why pruning failed; empty if it did not.
        """
        assert self._ownership is not None
        self._ownership.check()
        folder = manifest.folder
        self._storage.write(f"{folder}/{MANIFEST}", manifest.encode())
        self._storage.write(POINTER, to_json({"folder": folder, "step": manifest.step}).encode())
        try:
            self._ownership.check()
            self._retention.prune(self._storage, self._run)
        except OwnershipError:
            raise
        except Exception as error:
            return f"old checkpoints stay: {_reason(error)}"
        return ""


def open_verified(
    storage: Storage, folder: str, beat: Callable[[], None] = lambda: None
) -> tuple[CheckpointReader | None, str]:
    """A checkpoint whose parts all match their checksums, else what is wrong. Collective.

    The ranks share out the parts.

    Args:
        beat: called while the parts are read.

    Raises:
        UserError: it could not be read, which says nothing about it.
    """
    opened: list[CheckpointReader] = []

    def verify() -> str:
        try:
            reader = CheckpointReader(storage, folder)
            opened.append(reader)
            reader.verify(
                range(collectives.rank(), reader.manifest.world_size, collectives.world_size())
            )
        except (MissingObjectError, DamagedCheckpointError) as error:
            return str(error)
        return ""

    def activity() -> int:
        return opened[0].activity if opened else 0

    try:
        problems = [
            text for text in run_with_progress(verify, activity, StallTimer(beat).update) if text
        ]
    except BaseException:
        _close(opened)
        raise
    if problems:
        _close(opened)
        return None, problems[0]
    return opened[0], ""


def _close(readers: list[CheckpointReader]) -> None:
    for reader in readers:
        reader.close()


class _HashingSink:
    """Passes bytes on; counts and sums them up."""

    def __init__(self, stream: Sink, count: Callable[[int], None]):
        self._stream = stream
        self._count = count
        self.bytes = 0
        self.xxh3 = xxhash.xxh3_128()

    def write(self, data: Any) -> None:
        self._stream.write(data)
        self.bytes += len(data)
        self._count(len(data))
        self.xxh3.update(data)


def _reason(error: Exception) -> str:
    return first_line(error) if isinstance(error, UserError) else class_and_line(error)
