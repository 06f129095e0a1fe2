"""What is at a checkpoint address: complete, damaged, unfinished checkpoints; foreign objects.

Only "it is not there" and a checksum that fails make a checkpoint unusable. Whatever else keeps one
from being read (a store that is busy or refuses, a time-out, a manifest of another version) is
raised: treating that as "no checkpoint" would restart the run and delete good ones.
No torch.
"""

from typing import NamedTuple

from gear_dist.checkpoints.layout import (
    ALIVE,
    DAMAGED,
    MANIFEST,
    OWNER,
    POINTER,
    CheckpointManifest,
    DamagedCheckpointError,
    Published,
    is_folder,
)
from gear_dist.errors import DataError
from gear_dist.storage.base import MissingObjectError, Storage

_OWN_NAMES = (POINTER, OWNER, ALIVE)


class CheckpointListing(NamedTuple):
    """A listing of a checkpoint address. Lists are oldest first, or by name."""

    published: list[Published]
    """Whole ones: the manifest is good, and each part there with its size."""
    damaged: list[tuple[Published, str]]
    """With a good manifest, and what is wrong."""
    unreadable: dict[str, str]
    """Folders whose manifest is damaged, and what is wrong: nothing tells whose they are."""
    unfinished: list[str]
    """Folders without a manifest."""
    foreign: list[str]
    """Names at the top that no run gives."""
    objects: dict[str, list[str]]
    """Names of what each checkpoint's folder holds."""

    def runs(self) -> set[str]:
        """Ids of the runs whose checkpoints are there."""
        return {item.manifest.run for item in self.all_published()} - {""}

    def all_published(self) -> list[Published]:
        """All that have a good manifest, the oldest first."""
        return sorted([*self.published, *(item for item, _ in self.damaged)], key=_age)

    def others(self, run: str) -> list[str]:
        """Top-level names that belong neither to this run nor to a version without run ids."""
        theirs = [item.folder for item in self.all_published() if not belongs(item, run)]
        return [*self.foreign, *theirs]

    def usable(self, run: str) -> list[Published]:
        """Whole checkpoints that a run may resume from."""
        return [item for item in self.published if belongs(item, run)]


def belongs(item: Published, run: str) -> bool:
    """Whether a checkpoint is a run's, or of a version that did not say whose."""
    manifest = item.manifest
    return (manifest.run, manifest.folder) in ((run, item.folder), ("", ""))


def look(storage: Storage) -> CheckpointListing:
    """List an address, and read every manifest.

    Raises:
        DataError: something could not be read.
    """
    sizes: dict[str, dict[str, int]] = {}
    foreign: dict[str, None] = {}
    for item in storage.list():
        top, below, name = item.key.partition("/")
        if below and is_folder(top):
            sizes.setdefault(top, {})[name] = item.bytes
        elif item.key not in _OWN_NAMES and not top.startswith(".") and top:
            foreign[top] = None
    found = CheckpointListing(
        [], [], {}, [], list(foreign), {f: list(names) for f, names in sizes.items()}
    )
    for folder, names in sizes.items():
        _judge(storage, folder, names, found)
    found.published.sort(key=_age)
    return found


def _judge(storage: Storage, folder: str, names: dict[str, int], found: CheckpointListing) -> None:
    if MANIFEST not in names:
        found.unfinished.append(folder)
        return
    try:
        item = Published(folder, read_manifest(storage, folder, names[MANIFEST]))
    except MissingObjectError:  # removed since it was listed
        found.unfinished.append(folder)
    except DamagedCheckpointError as error:
        found.unreadable[folder] = str(error)
    else:
        if problem := _what_is_wrong(item, names):
            found.damaged.append((item, problem))
        else:
            found.published.append(item)


def _what_is_wrong(item: Published, names: dict[str, int]) -> str:
    if DAMAGED in names:
        return f"{item.folder}: a part has failed its checksum before"
    for part in item.manifest.parts:
        if names.get(part.name) != part.bytes:
            problem = "has another size than the manifest says" if part.name in names else "is gone"
            return f"{item.folder}/{part.name} {problem}"
    return ""


def _age(item: Published) -> tuple[int, str]:
    return item.manifest.sequence, item.folder


def find_published(storage: Storage) -> list[Published]:
    """Whole checkpoints at an address, oldest first.

    Raises:
        DataError: see `look`.
    """
    return look(storage).published


def read_manifest(storage: Storage, folder: str, size: int | None = None) -> CheckpointManifest:
    """A checkpoint's manifest. If it looks damaged it is read once more, in case the response was.

    Args:
        size: bytes of the object by its listing.

    Raises:
        MissingObjectError: it is not there.
        DamagedCheckpointError: it is not what was written.
        DataError: it could not be read, or is another version's.
    """
    key = f"{folder}/{MANIFEST}"
    name = f"{storage.address}/{key}"
    for last in (False, True):
        data = storage.read(key)
        if last and size not in (None, len(data)):
            raise DataError(f"{name}: {len(data)} of {size} bytes were read: run again")
        try:
            return CheckpointManifest.parse(data, name)
        except DamagedCheckpointError:
            if last:
                raise
    raise AssertionError("the last reading returns or raises")
