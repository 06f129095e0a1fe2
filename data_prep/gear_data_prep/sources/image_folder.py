"""ImageFolder trees: CLASS/NAME.jpg with optional sidecars NAME.txt and NAME.json."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gear_data_prep.samples import (
    MAX_SAMPLE_BYTES,
    MAX_SIDECAR_BYTES,
    BadSampleError,
    RawSample,
    parse_sidecar,
)
from gear_data_prep.sources.base import Source, make_splits
from gear_data_prep.sources.files import Place, SourceOptions
from gear_data_prep.tar_writer import SAMPLE_OVERHEAD_BYTES
from gear_dist.data.tar_samples import IMAGE_SUFFIXES as SUFFIXES
from gear_dist.errors import DataError
from gear_dist.storage import FileStorage, Storage

SPLIT_FOLDERS = {"train": ("train",), "validation": ("val", "validation", "valid")}


class TreeImage(NamedTuple):
    """An image file of a tree, as its listing shows it: a unit of one sample."""

    path: str
    """Relative to the source's root, with slashes."""
    class_index: int
    sizes: tuple[int, int, int]
    """Bytes of the image, of its caption and of its attributes; -1: no such sidecar."""

    @property
    def stem(self) -> str:
        """The path without its suffix: sidecars are STEM.txt and STEM.json."""
        return self.path.rpartition(".")[0]

    @property
    def num_samples(self) -> int:
        return 1

    @property
    def cost_bytes(self) -> int:
        return sum(size for size in self.sizes if size > 0) + SAMPLE_OVERHEAD_BYTES

    @property
    def identity(self) -> str:
        return f"{self.class_index} {self.sizes} {self.path}"


class TreeReader(NamedTuple):
    """Reads images with their sidecars."""

    storage: Storage
    remote: bool

    def read(self, unit: TreeImage) -> list[RawSample]:
        """The one sample of an image file; DataError where it vanished."""
        if unit.sizes[0] > MAX_SAMPLE_BYTES or max(unit.sizes[1:]) > MAX_SIDECAR_BYTES:
            heavy = BadSampleError("too-large", f"{unit.sizes} bytes of image, caption, JSON")
            return [RawSample(unit.path, b"", "", problem=heavy)]
        image = self.storage.read(unit.path)
        suffix = unit.path.rpartition(".")[2].lower()
        captions: tuple[bytes | str, ...] = ()
        attributes: dict[str, int] = {}
        problem: BadSampleError | None = None
        if unit.sizes[1] >= 0:
            captions = (self.storage.read(f"{unit.stem}.txt"),)
        if unit.sizes[2] >= 0:
            try:
                sidecar = parse_sidecar(self.storage.read(f"{unit.stem}.json"), strict=True)
                # A sidecar of several captions repeats the one in the text file.
                captions, attributes = sidecar.captions or captions, sidecar.attributes
            except BadSampleError as error:
                problem = error
        return [
            RawSample(unit.path, image, suffix, unit.class_index, captions, attributes, problem)
        ]


def open_image_folder(place: Place, options: SourceOptions) -> Source:
    """List an ImageFolder tree.

    ROOT/{train,val}/CLASS/... gives the two splits; ROOT/CLASS/... (or ROOT/train/CLASS/... alone)
    is divided by a hash of each image's relative path. Classes are those that have images, in
    the order of their names, the same for both splits.

    Raises:
        DataError: no such folder, no class folders, no images.
    """
    storage, only = place.storage, place.only
    local = isinstance(storage, FileStorage)
    if only:
        raise DataError(f"{storage.address}/{only}: a file, not an ImageFolder tree")
    if local and not storage.root.is_dir():  # type: ignore[attr-defined]
        raise DataError(
            f"{storage.address}: no such folder; SOURCE is an ImageFolder tree, CLASS/NAME.jpg"
        )
    files = _walk(storage.root) if local else _listed(storage)  # type: ignore[attr-defined]
    sizes = {path: size for path, size in files if path.count("/")}
    splits = _split(sizes)
    classes = sorted({_class_of(path, depth) for depth, paths in splits.values() for path in paths})
    if not classes:
        raise DataError(
            f"{storage.address}: no images in class folders: expected CLASS/NAME.jpg below it (or "
            f"{', '.join(SUFFIXES)}); other kinds of source are chosen by --kind"
        )
    index = {name: number for number, name in enumerate(classes)}
    units = {
        split: [_unit(path, index[_class_of(path, depth)], sizes) for path in sorted(paths)]
        for split, (depth, paths) in splits.items()
    }
    if not units["train"]:
        raise DataError(f"{storage.address}/train: no images in class folders")
    units = {split: listed for split, listed in units.items() if listed}
    used = sum(1 + sum(s >= 0 for s in unit.sizes[1:]) for part in units.values() for unit in part)
    return Source(
        storage.address,
        TreeReader(storage, not local),
        tuple(classes),
        make_splits(units, options.validation_share),
        num_ignored=max(0, sum(map(_in_a_class, sizes)) - used),
    )


def _split(sizes: dict[str, int]) -> dict[str, tuple[int, list[str]]]:
    """Image paths by split, and at what depth their class folder is."""
    images = [path for path in sizes if path.rpartition(".")[2].lower() in SUFFIXES]
    tops = {path.partition("/")[0] for path in sizes}
    folders = {
        split: next((name for name in names if name in tops), None)
        for split, names in SPLIT_FOLDERS.items()
    }
    if folders["train"] is None:
        return {"train": (0, images)}
    return {
        split: (1, [p for p in images if p.startswith(f"{name}/") and p.count("/") > 1])
        for split, name in folders.items()
        if name is not None
    }


def _in_a_class(path: str) -> bool:
    """Whether a file lies in a class folder, so that it should have been part of a sample."""
    top = path.partition("/")[0]
    nested = any(top in names for names in SPLIT_FOLDERS.values())
    return path.count("/") > nested


def _class_of(path: str, depth: int) -> str:
    return path.split("/")[depth]


def _unit(path: str, class_index: int, sizes: dict[str, int]) -> TreeImage:
    stem = path.rpartition(".")[0]
    sidecars = sizes.get(f"{stem}.txt", -1), sizes.get(f"{stem}.json", -1)
    return TreeImage(path, class_index, (sizes[path], *sidecars))


def _listed(storage: Storage) -> Iterator[tuple[str, int]]:
    for item in storage.list():
        if not any(part.startswith(".") for part in item.key.split("/")):
            yield item.key, item.bytes


def _is_circle(entry: os.DirEntry[str]) -> bool:
    """Whether it is a link that leads back to itself: nothing is there."""
    try:
        entry.is_file()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _walk(root: Path) -> Iterator[tuple[str, int]]:
    """Relative path and size of every file that is not hidden.

    Links to folders are followed; a folder is walked once, so that a link to its own parent ends.
    """
    pending = [(os.fspath(root), "")]
    seen = set()
    while pending:
        folder, prefix = pending.pop()
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in os.scandir(folder):
            if entry.name.startswith("."):
                continue
            if _is_circle(entry):
                continue
            if entry.is_dir():
                pending.append((entry.path, f"{prefix}{entry.name}/"))
            elif entry.is_file():
                yield prefix + entry.name, entry.stat().st_size
