"""Names and records of a checkpoint's folder.

ADDRESS/step-00000900-ATTEMPT/part-00000.safetensors ... manifest.json, and ADDRESS/latest.json.
A folder without a manifest is unfinished and never read. ATTEMPT tells tries at the same step
apart. A part holds stretches of tensors as `NETWORK.KIND.NAME@START`.
"""

from typing import Any, NamedTuple, Self

POINTER = "latest.json"
MANIFEST = "manifest.json"
FORMAT = 2


class PartRecord(NamedTuple):
    """A part as it was written."""

    name: str
    bytes: int
    xxh3: str


class Manifest(NamedTuple):
    """What makes a folder a checkpoint."""

    step: int
    sequence: int
    """Grows with every checkpoint of a run; where a run was set back, steps do not."""
    parts: list[PartRecord]
    """By the rank that wrote them."""
    facts: dict[str, Any]
    """Everything that is saved and no tensor; the same for all ranks."""

    @property
    def world_size(self) -> int:
        """Ranks that wrote it."""
        return len(self.parts)

    def to_dict(self) -> dict[str, Any]:
        """As it is written."""
        parts = [part._asdict() for part in self.parts]
        return {"format": FORMAT, **self._asdict(), "parts": parts}

    @classmethod
    def parse(cls, node: Any) -> Self:
        """The inverse of `to_dict`.

        Raises:
            ValueError, KeyError, TypeError: it is something else.
        """
        if node["format"] != FORMAT:
            raise ValueError(f"format {node['format']}")
        parts = [PartRecord(**part) for part in node["parts"]]
        if not parts or any(part.name != part_name(i) for i, part in enumerate(parts)):
            raise ValueError("parts")
        return cls(int(node["step"]), int(node["sequence"]), parts, dict(node["facts"]))


class Published(NamedTuple):
    """A checkpoint that is there."""

    folder: str
    manifest: Manifest


def stored_key(key: str, start: int) -> str:
    """Name of a stretch in its part."""
    return f"{key}@{start}"


def split_key(stored: str) -> tuple[str, int]:
    """The inverse of `stored_key`."""
    key, _, start = stored.rpartition("@")
    return key, int(start)


def part_name(rank: int) -> str:
    """File of a rank's part."""
    return f"part-{rank:05d}.safetensors"
