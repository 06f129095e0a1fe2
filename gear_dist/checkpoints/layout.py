"""Names and records of a checkpoint's folder. No torch.

ADDRESS/step-00000900-RUN-ATTEMPT/part-00000.safetensors ... manifest.json, ADDRESS/latest.json and
ADDRESS/owner.json. A folder without a manifest is unfinished and never read. RUN is the id of the
run that writes it, by which its own folders are known even where they are unfinished; ATTEMPT tells
tries at the same step apart. A part holds fragments of flattened tensors, named
`NETWORK.KIND.NAME@START`.
"""

import json
import re
from typing import Any, NamedTuple, Self

import xxhash

from gear_dist.errors import DataError
from gear_dist.runs.run_folder import RUN_ID
from gear_dist.storage.json_files import to_json

POINTER = "latest.json"
MANIFEST = "manifest.json"
OWNER = "owner.json"
"""Whose address it is; see owner.py."""
ALIVE = "alive.json"
"""Changes while the owner's process lives."""
DAMAGED = "damaged.json"
"""In a folder one of whose parts has failed its checksum."""
FORMAT = 3
UNOWNED_FORMAT = 2
"""Of version 0.1's first checkpoints, which say neither whose they are nor their own checksum."""

_FOLDER = re.compile(rf"step-\d{{8,}}-(?:(?P<run>{RUN_ID.pattern})-)?[0-9a-f]{{6}}")
_OBJECT = re.compile(r"part-\d{5,}\.safetensors|" + re.escape(MANIFEST) + "|" + re.escape(DAMAGED))


class DamagedCheckpointError(DataError):
    """A checkpoint whose bytes were read, and are not those that were written."""


class PartRecord(NamedTuple):
    """A part as it was written."""

    name: str
    bytes: int
    xxh3: str


class CheckpointManifest(NamedTuple):
    """What makes a folder a checkpoint."""

    step: int
    sequence: int
    """Grows with every checkpoint of a run; where a run was set back, steps do not."""
    parts: list[PartRecord]
    """By the rank that wrote them."""
    state: dict[str, Any]
    """Everything that is saved and no tensor; the same for all ranks."""
    run: str = ""
    """Id of the run that has written it; empty: of a version that did not say."""
    folder: str = ""
    """Name of its folder, by which a copy under another name is known for one."""

    @property
    def world_size(self) -> int:
        """Ranks that wrote it."""
        return len(self.parts)

    def encode(self) -> bytes:
        """As it is written: JSON, with a checksum of all the rest."""
        parts = [part._asdict() for part in self.parts]
        node = json.loads(to_json({"format": FORMAT, **_as_stored(self._asdict()), "parts": parts}))
        return to_json({**node, "xxh3": _checksum(node)}).encode()

    @classmethod
    def parse(cls, data: bytes, name: str) -> Self:
        """The inverse of `encode`.

        Args:
            name: of the object, for errors.

        Raises:
            DamagedCheckpointError: these bytes were never written as a manifest.
            DataError: they are another version's.
        """
        try:
            node = json.loads(data)
            claimed = node.pop("xxh3", None)
            if claimed not in (None, _checksum(node)):
                raise DamagedCheckpointError(
                    f"{name}: does not match its own checksum: it was changed or cut"
                )
            found = int(node["format"])
            if found not in (FORMAT, UNOWNED_FORMAT):
                raise DataError(
                    f"{name}: is of format {found}, and this version reads {UNOWNED_FORMAT} and "
                    f"{FORMAT}: continue with the version that wrote it, or set another run.name"
                )
            keys = {"format", *_as_stored(dict.fromkeys(cls._fields))}
            keys -= {"run", "folder"} if found < FORMAT else set()
            if set(node) != keys or (claimed is None) != (found < FORMAT):
                raise ValueError("its keys")
            return cls._from_dict(node)
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
            raise DamagedCheckpointError(f"{name}: is not a checkpoint manifest") from None

    @classmethod
    def _from_dict(cls, node: dict[str, Any]) -> Self:
        parts = [PartRecord(**part) for part in node["parts"]]
        if not parts or any(part.name != part_name(i) for i, part in enumerate(parts)):
            raise ValueError("parts")
        state = dict(node["facts"])
        run, folder = str(node.get("run", "")), str(node.get("folder", ""))
        return cls(int(node["step"]), int(node["sequence"]), parts, state, run, folder)


def _as_stored(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields by their names on disk: `state` is stored under the key `facts` (format 3)."""
    return {"facts" if name == "state" else name: value for name, value in fields.items()}


def _checksum(node: dict[str, Any]) -> str:
    """Of the values, however they are set in type."""
    text = json.dumps(node, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(text.encode())


class Published(NamedTuple):
    """A checkpoint that is there."""

    folder: str
    manifest: CheckpointManifest


def folder_name(step: int, run: str, attempt: str) -> str:
    """Folder of a run's checkpoint.

    Args:
        attempt: 6 hex digits.
    """
    return f"step-{step:08d}-{run}-{attempt}"


def is_folder(name: str) -> bool:
    """Whether a name is that of a checkpoint's folder, of whichever run."""
    return _FOLDER.fullmatch(name) is not None


def run_of(folder: str) -> str:
    """Id of the run that a folder's name tells; empty: none."""
    found = _FOLDER.fullmatch(folder)
    return (found["run"] or "") if found else ""


def is_object(name: str) -> bool:
    """Whether a name inside a checkpoint's folder is one that a run writes there."""
    return _OBJECT.fullmatch(name) is not None


def stored_key(key: str, start: int) -> str:
    """Name of a fragment in its part."""
    return f"{key}@{start}"


def split_key(stored: str) -> tuple[str, int]:
    """The inverse of `stored_key`."""
    key, _, start = stored.rpartition("@")
    return key, int(start)


def part_name(rank: int) -> str:
    """File of a rank's part."""
    return f"part-{rank:05d}.safetensors"
