"""Reading a published checkpoint: any fragment of any tensor, however the parts are cut."""

import itertools
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gear_dist.checkpoints.layout import DamagedCheckpointError, PartRecord, split_key
from gear_dist.checkpoints.listing import read_manifest
from gear_dist.checkpoints.shards import TensorShard
from gear_dist.errors import DataError
from gear_dist.storage.base import MissingObjectError, Storage
from gear_dist.storage.local import FileStorage

_READ_BYTES = 1 << 22


class CheckpointReader:
    """One published checkpoint. Parts of an object store are copied to a temporary folder."""

    def __init__(self, storage: Storage, folder: str):
        """Read the manifest; for errors see `read_manifest`."""
        self.folder = folder
        self._storage = storage
        self.manifest = read_manifest(storage, folder)
        self._held = ExitStack()
        self._copies: dict[int, Path] = {}
        self._files: dict[int, Any] = {}
        self._where: dict[str, list[int]] = {}
        self._hashed_bytes = 0

    @property
    def activity(self) -> int:
        """A counter that grows while parts are read, to tell slow reads from stuck ones."""
        return self._hashed_bytes + self._storage.activity

    @property
    def state(self) -> dict[str, Any]:
        """What was saved beside the tensors."""
        return self.manifest.state

    def __enter__(self) -> "CheckpointReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the parts, and remove temporary copies."""
        self._held.close()
        self._copies, self._files, self._where = {}, {}, {}

    def verify(self, numbers: Iterable[int]) -> None:
        """Compare parts with the manifest's sizes and checksums.

        What differs is read once more: what comes over a network can be damaged on its way.

        Raises:
            MissingObjectError: one is not there.
            DamagedCheckpointError: one is damaged.
            UserError: one could not be read.
        """
        for number in numbers:
            part = self.manifest.parts[number]
            if self._matches(number, part):
                continue
            self._copies.pop(number, None)
            if not self._matches(number, part):
                where = f"{self.folder}/{part.name}"
                raise DamagedCheckpointError(
                    f"{where}: the bytes do not match the manifest's checksum"
                )

    def _matches(self, number: int, part: PartRecord) -> bool:
        path = self._local(number)
        checksum = xxhash.xxh3_128()
        size = 0
        try:
            with path.open("rb") as file:
                while data := file.read(_READ_BYTES):
                    checksum.update(data)
                    size += len(data)
                    self._hashed_bytes += len(data)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
        return size == part.bytes and checksum.hexdigest() == part.xxh3

    def fill(self, shards: Iterable[TensorShard], likely: float = 0.0) -> None:
        """Write the saved values into shards.

        Args:
            shards: of tensors that the checkpoint has.
            likely: where among the parts most of them are, 0 the first, 1 the end.

        Raises:
            DataError: the checkpoint lacks some of their elements, or is unreadable.
        """
        wanted: dict[str, list[TensorShard]] = {}
        for shard in shards:
            wanted.setdefault(shard.key, []).append(shard)
        missing = {key: sum(len(p.values) for p in found) for key, found in wanted.items()}
        middle = int(likely * len(self.manifest.parts))
        for number in sorted(range(len(self.manifest.parts)), key=lambda i: (abs(i - middle), i)):
            self._fill_from(number, wanted, missing)
            if not any(missing.values()):
                break
        lacking = [key for key, count in missing.items() if count]
        if lacking:
            raise DataError(
                f"{self._storage.address}/{self.folder}: lacks {len(lacking)} tensors, such as "
                f"{lacking[0]}: it is of other networks; resume from another checkpoint"
            )
        for shard in itertools.chain.from_iterable(wanted.values()):
            if shard.copied_from is not None:
                shard.copied_from.copy_(shard.values.view(shard.copied_from.shape))

    def _fill_from(
        self, number: int, wanted: dict[str, list[TensorShard]], missing: dict[str, int]
    ) -> None:
        file = self._open(number)
        for stored in file.keys():  # noqa: SIM118
            key, start = split_key(stored)
            if not missing.get(key):
                continue
            source = file.get_slice(stored)
            end = start + source.get_shape()[0]
            for shard in wanted[key]:
                low, high = max(start, shard.start), min(end, shard.start + len(shard.values))
                if low < high:
                    values = source[low - start : high - start]
                    shard.values[low - shard.start : high - shard.start].copy_(values)
                    missing[key] -= high - low

    def keys(self) -> set[str]:
        """Names of all tensors."""
        return set(self._parts_of())

    def read(self, key: str, shape: Iterable[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """A whole tensor.

        Raises:
            DataError: the checkpoint lacks it.
        """
        tensor = torch.empty(tuple(shape), dtype=dtype)
        missing = {key: tensor.numel()}
        for number in self._parts_of().get(key, []):
            self._fill_from(number, {key: [TensorShard(key, 0, tensor.view(-1))]}, missing)
        if missing[key]:
            raise DataError(f"{self.folder} lacks {missing[key]} elements of {key}")
        return tensor

    def dtype(self, key: str) -> torch.dtype:
        """Of a tensor that is there."""
        number = self._parts_of()[key][0]
        file = self._open(number)
        stored = next(name for name in file.keys() if split_key(name)[0] == key)  # noqa: SIM118
        return file.get_slice(stored)[:1].dtype

    def _parts_of(self) -> dict[str, list[int]]:
        """Numbers of the parts with something of each tensor."""
        if not self._where:
            for number in range(len(self.manifest.parts)):
                stored_keys = self._open(number).keys()
                for key in {split_key(stored)[0] for stored in stored_keys}:
                    self._where.setdefault(key, []).append(number)
        return self._where

    def _open(self, number: int) -> Any:
        if number not in self._files:
            try:
                file = safe_open(self._local(number), framework="pt")
                self._files[number] = self._held.enter_context(file)
            except (SafetensorError, OSError) as error:
                name = self.manifest.parts[number].name
                raise DataError(f"{self.folder}/{name}: not readable: {error}") from None
        return self._files[number]

    def _local(self, number: int) -> Path:
        name = self.manifest.parts[number].name
        if isinstance(self._storage, FileStorage):
            path = self._storage.root / self.folder / name
            if not self._storage.exists(f"{self.folder}/{name}"):
                raise MissingObjectError(f"{path}: no such file")
            return path
        if number not in self._copies:
            if not self._copies:
                scratch = self._held.enter_context(tempfile.TemporaryDirectory(prefix="gear-"))
                self._scratch = Path(scratch)
            path = self._scratch / name
            self._storage.download(f"{self.folder}/{name}", path)
            self._copies[number] = path
        return self._copies[number]
