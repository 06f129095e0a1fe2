"""Checkpoints: every rank writes its part, then a manifest and the pointer publish them.

CHECKPOINTS/step-00000900-ATTEMPT/part-00000.pt ... manifest.json, and CHECKPOINTS/latest.json.
A folder without a manifest is unfinished and never read. ATTEMPT tells tries at the same step
apart. Parts hold plain tensors and numbers, so that they load without running code.
"""

import io
import json
import secrets
import warnings
from typing import Any, NamedTuple

import torch
import xxhash

from gear_dist import dist
from gear_dist.errors import ConfigError, DataError
from gear_dist.storage import Storage

POINTER = "latest.json"
MANIFEST = "manifest.json"


class CheckpointInfo(NamedTuple):
    """A published checkpoint."""

    folder: str
    step: int
    world_size: int


class CheckpointStore:
    """Writes and finds the checkpoints of one run."""

    def __init__(self, storage: Storage, keep: int):
        self._storage = storage
        self._keep = keep

    def save(self, step: int, part: dict[str, Any]) -> str:
        """Publish this step's checkpoint; returns its folder's name. Collective.

        Raises:
            StorageError: the store refuses; what was published before stays good.
        """
        folder = dist.broadcast_object(f"step-{step:08d}-{secrets.token_hex(3)}")
        data = _to_bytes(part)
        name = f"part-{dist.rank():05d}.pt"
        self._storage.write(f"{folder}/{name}", data)
        mine = {"name": name, "bytes": len(data), "xxh3": _checksum(data)}
        parts = dist.gather_objects(mine)
        if dist.rank() == 0:
            manifest = {"step": step, "world_size": dist.world_size(), "parts": parts}
            self._storage.write(f"{folder}/{MANIFEST}", _json(manifest))
            pointer = {"folder": folder, "step": step}
            self._storage.write(POINTER, _json(pointer))
            self._prune()
        dist.barrier()
        return folder

    def published(self) -> list[CheckpointInfo]:
        """Published checkpoints, oldest first. Unreadable manifests are warned of and left out."""
        found = []
        for item in self._storage.list():
            folder, _, name = item.key.rpartition("/")
            if name != MANIFEST:
                continue
            try:
                manifest = json.loads(self._storage.read(item.key))
                found.append(CheckpointInfo(folder, manifest["step"], manifest["world_size"]))
            except (ValueError, KeyError, TypeError):
                warnings.warn(f"{item.key}: not a checkpoint manifest; passed over", stacklevel=2)
        return sorted(found, key=lambda info: (info.step, info.folder))

    def load_latest(self) -> list[dict[str, Any]] | None:
        """The newest good checkpoint: rank 0's part, and this rank's. None: there is none.

        All ranks read the same one: a checkpoint that fails its checksums on any rank is passed
        over on all, with a warning.

        Raises:
            ConfigError: it was written by another number of workers.
        """
        published = dist.broadcast_object(self.published() if dist.rank() == 0 else None)
        for info in reversed(published):
            if info.world_size != dist.world_size():
                raise ConfigError(
                    f"{info.folder} was written by {info.world_size} workers and there are "
                    f"{dist.world_size()}: set run.workers={info.world_size}"
                )
            parts, problem = self._read_parts(info)
            problems = [text for text in dist.gather_objects(problem) if text]
            if not problems:
                return parts
            warnings.warn(f"{info.folder} passed over: {problems[0]}", stacklevel=2)
        return None

    def _read_parts(self, info: CheckpointInfo) -> tuple[list[dict[str, Any]], str]:
        try:
            manifest = json.loads(self._storage.read(f"{info.folder}/{MANIFEST}"))
            wanted = {0, dist.rank()}
            parts = [self._read_part(info.folder, manifest["parts"][i]) for i in sorted(wanted)]
            return [parts[0], parts[-1]], ""
        except (DataError, ValueError, KeyError, IndexError) as error:
            return [], str(error)

    def _read_part(self, folder: str, record: dict[str, Any]) -> dict[str, Any]:
        key = f"{folder}/{record['name']}"
        data = self._storage.read(key)
        if len(data) != record["bytes"] or _checksum(data) != record["xxh3"]:
            raise DataError(f"{key}: the bytes do not match the manifest's checksum")
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)

    def _prune(self) -> None:
        """Keep the newest; a folder is emptied manifest first, so that it never looks whole."""
        kept = {info.folder for info in self.published()[-self._keep :]}
        keys = [item.key for item in self._storage.list() if item.key != POINTER]
        stale = [key for key in keys if key.split("/")[0] not in kept]
        for key in sorted(stale, key=lambda key: not key.endswith(MANIFEST)):
            self._storage.delete(key)


def _to_bytes(part: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(part, buffer)
    return buffer.getvalue()


def _checksum(data: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(data)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
