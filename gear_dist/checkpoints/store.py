"""The checkpoints of a run: every rank writes its part, then a manifest and the pointer publish.

Saving goes on beside the training where it is asynchronous: what is saved is copied first, and one
thread a rank writes, agrees with the others and publishes.
"""

import secrets
import threading
import time
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch.distributed
import xxhash
from torch import Tensor

from gear_dist import dist
from gear_dist.checkpoints.layout import (
    MANIFEST,
    POINTER,
    Manifest,
    PartRecord,
    Published,
    part_name,
    stored_key,
)
from gear_dist.checkpoints.pieces import Piece
from gear_dist.checkpoints.reading import CheckpointReader, read_manifest
from gear_dist.checkpoints.retention import Retention
from gear_dist.errors import DataError, UserError
from gear_dist.run_folder import to_json
from gear_dist.storage import Storage
from gear_dist.tensor_file import Sink, write_tensors


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


class CheckpointStore:
    """Writes and finds the checkpoints of one run. Made and used by all ranks alike."""

    def __init__(self, storage: Storage, retention: Retention, *, asynchronous: bool = False):
        """Look for what is there. Collective.

        Raises:
            DataError: the store cannot be reached.
        """
        self._storage = storage
        self._retention = retention
        self._asynchronous = asynchronous
        self._group: Any = None
        if dist.world_size() > 1:
            # A group of its own, because the thread's collectives run beside the training's.
            self._group = torch.distributed.new_group(backend="gloo")
        newest = self.published()[-1:] if dist.rank() == 0 else []
        self._sequence = dist.broadcast_object(newest[0].manifest.sequence if newest else 0)
        self._thread: threading.Thread | None = None
        self._results: list[SaveResult] = []

    @property
    def address(self) -> str:
        """Where the checkpoints are."""
        return self._storage.address

    # -- finding ----------------------------------------------------------------------------

    def published(self) -> list[Published]:
        """Published checkpoints, oldest first. Unreadable manifests are warned of and left out.

        Raises:
            DataError: the store cannot be reached.
        """
        return find_published(self._storage)

    def open_newest(self) -> CheckpointReader | None:
        """The newest good checkpoint; None: there is none. Collective.

        All ranks open the same one: a checkpoint that fails its checksums on any rank is passed
        over on all, with a warning.
        """
        found = dist.broadcast_object(
            [item.folder for item in self.published()] if dist.rank() == 0 else None
        )
        for folder in reversed(found):
            reader, problem = open_verified(self._storage, folder)
            if reader is not None:
                return reader
            warnings.warn(f"{folder} passed over: {problem}", stacklevel=2)
        return None

    # -- saving -----------------------------------------------------------------------------

    def save(self, step: int, facts: dict[str, Any], pieces: Iterable[Piece]) -> None:
        """Publish this step's checkpoint, or begin to. Collective; see `take_results`.

        A save that is still under way is waited for first.

        Args:
            facts: what is saved beside the tensors; rank 0's count.
            pieces: this rank's. Those that are replicated are dealt out among the ranks.
        """
        started = time.monotonic()
        self.wait()
        folder = dist.broadcast_object(f"step-{step:08d}-{secrets.token_hex(3)}")
        self._sequence += 1
        manifest = Manifest(step, self._sequence, [], facts)
        tensors = self._snapshot(pieces)
        if self._asynchronous:
            arguments = (folder, manifest, tensors, started, time.monotonic())
            self._thread = threading.Thread(
                target=self._publish, args=arguments, name="checkpoint", daemon=True
            )
            self._thread.start()
        else:
            self._publish(folder, manifest, tensors, started)

    def wait(self) -> None:
        """Until no save is under way."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def take_results(self) -> list[SaveResult]:
        """Saves that have ended since the last call, oldest first."""
        taken, self._results = self._results, []
        return taken

    def _snapshot(self, pieces: Iterable[Piece]) -> dict[str, Tensor]:
        """This rank's tensors on the CPU, apart from the live ones where training goes on."""
        rank, world_size = dist.rank(), dist.world_size()
        dealt = 0
        tensors = {}
        for piece in pieces:
            if piece.replicated:
                dealt += 1
                if dealt % world_size != rank:
                    continue
            values = piece.values.detach()
            key = stored_key(piece.key, piece.start)
            tensors[key] = values.to("cpu", copy=self._asynchronous)
        return tensors

    def _publish(
        self,
        folder: str,
        manifest: Manifest,
        tensors: dict[str, Tensor],
        started: float,
        released: float | None = None,
    ) -> None:
        part, problem = None, ""
        try:
            part, problem = self._write_and_agree(folder, manifest, tensors)
        except Exception as error:  # a lost peer: training ends by it, and must not trust this
            problem = _one_line(error)
        now = time.monotonic()
        blocked = (released or now) - started
        size = part.bytes if part else 0
        result = SaveResult(manifest.step, folder, problem, blocked, now - started, size)
        self._results.append(result)

    def _write_and_agree(
        self, folder: str, manifest: Manifest, tensors: dict[str, Tensor]
    ) -> tuple[PartRecord | None, str]:
        """Returns: this rank's part, and what went wrong on any rank."""
        part, problem = self._write_part(folder, tensors)
        found = dist.gather_objects((part, problem), self._group)
        problem = next((text for _, text in found if text), "")
        if not problem and dist.rank() == 0:
            parts = [record for record, _ in found if record]
            problem = self._write_manifest(folder, manifest._replace(parts=parts))
        told = dist.gather_objects(problem, self._group)[0]
        return part, problem or told

    def _write_part(self, folder: str, tensors: dict[str, Tensor]) -> tuple[PartRecord | None, str]:
        name = part_name(dist.rank())
        try:
            with self._storage.writer(f"{folder}/{name}") as stream:
                sink = _HashingSink(stream)
                write_tensors(sink, tensors.items(), {})
        except Exception as error:  # whatever it is, the other ranks must learn of it
            return None, _one_line(error)
        return PartRecord(name, sink.bytes, sink.xxh3.hexdigest()), ""

    def _write_manifest(self, folder: str, manifest: Manifest) -> str:
        try:
            self._storage.write(f"{folder}/{MANIFEST}", to_json(manifest.to_dict()).encode())
            self._storage.write(
                POINTER, to_json({"folder": folder, "step": manifest.step}).encode()
            )
        except Exception as error:
            return _one_line(error)
        try:
            self._prune()
        except Exception as error:
            warnings.warn(f"old checkpoints stay: {_one_line(error)}", stacklevel=2)
        return ""

    def _prune(self) -> None:
        """Remove what is not kept; manifest first, so that a folder never looks whole."""
        kept = self._retention.kept(self.published())
        folders = {item.key.split("/")[0] for item in self._storage.list()} - {POINTER}
        for folder in sorted(folders - kept):
            self._storage.delete(f"{folder}/{MANIFEST}")
            self._storage.delete_folder(folder)


def find_published(storage: Storage) -> list[Published]:
    """Published checkpoints at an address, oldest first; see `CheckpointStore.published`."""
    found = []
    for item in storage.list():
        folder, _, name = item.key.rpartition("/")
        if name != MANIFEST:
            continue
        try:
            found.append(Published(folder, read_manifest(storage, folder)))
        except DataError as error:
            warnings.warn(f"{error}; passed over", stacklevel=2)
    return sorted(found, key=lambda item: (item.manifest.sequence, item.folder))


def open_verified(storage: Storage, folder: str) -> tuple[CheckpointReader | None, str]:
    """A checkpoint whose parts all match their checksums, else what is wrong. Collective.

    The ranks share out the parts.
    """
    reader, problem = None, ""
    try:
        reader = CheckpointReader(storage, folder)
        reader.verify(range(dist.rank(), reader.manifest.world_size, dist.world_size()))
    except DataError as error:
        problem = str(error)
    problems = [text for text in dist.gather_objects(problem) if text]
    if problems and reader is not None:
        reader.close()
    return (None, problems[0]) if problems else (reader, "")


class _HashingSink:
    """Passes bytes on; counts and sums them up."""

    def __init__(self, stream: Sink):
        self._stream = stream
        self.bytes = 0
        self.xxh3 = xxhash.xxh3_128()

    def write(self, data: Any) -> None:
        self._stream.write(data)
        self.bytes += len(data)
        self.xxh3.update(data)


def _one_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    if isinstance(error, UserError) and text:
        return text[0]
    return f"{type(error).__name__}: {text[0] if text else ''}"
