"""What can be sharded. This far: ImageFolder trees, CLASS/NAME.jpg with optional sidecars."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gear_dist.data.shard_reader import IMAGE_SUFFIXES
from gear_dist.errors import DataError

TRAIN_NAMES = ("train",)
VALIDATION_NAMES = ("val", "validation", "valid")


class SourceImage(NamedTuple):
    """An image file of a tree, as its listing shows it."""

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
    def suffix(self) -> str:
        """The image's suffix in the shard: lower case, jpeg as jpg."""
        suffix = self.path.rpartition(".")[2].lower()
        return "jpg" if suffix == "jpeg" else suffix


class Source(NamedTuple):
    """A tree's images by split, in the order of their paths."""

    root: Path
    classes: tuple[str, ...]
    splits: dict[str, tuple[SourceImage, ...]]
    """`train`, and `validation` where it is not empty."""
    num_ignored: int
    """Files that are neither images nor their sidecars."""


def read_image_folder(root: Path, validation_share: float) -> Source:
    """List an ImageFolder tree.

    ROOT/{train,val}/CLASS/... gives the two splits; ROOT/CLASS/... (or ROOT/train/CLASS/... alone)
    is split by a hash of each image's relative path. Classes are those that have images,
    in the order of their names, the same for both splits.

    Args:
        root: the tree.
        validation_share: share of images that go to validation where the tree has no split;
            with a share above 0 and two images at least, neither split is empty.

    Raises:
        DataError: no such folder, no class folders, no images.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; SOURCE is an ImageFolder tree, CLASS/NAME.jpg")
    folders = {split: _first_folder(root, names) for split, names in _SPLIT_NAMES.items()}
    trees = {split: folder for split, folder in folders.items() if folder is not None}
    if "train" not in trees:
        trees = {"train": root}
    found = {split: list(_walk_classes(folder)) for split, folder in trees.items()}
    classes = tuple(sorted({name for files in found.values() for name, _, _ in files}))
    if not classes:
        _no_images(root)
    index = {name: number for number, name in enumerate(classes)}
    listed = {split: _pair(root, files, index) for split, files in found.items()}
    splits = {split: images for split, (images, _) in listed.items() if images}
    if "train" not in splits:
        _no_images(trees["train"])
    if len(trees) == 1:
        splits = _divide(splits["train"], validation_share)
    return Source(root, classes, splits, sum(ignored for _, ignored in listed.values()))


_SPLIT_NAMES = {"train": TRAIN_NAMES, "validation": VALIDATION_NAMES}


def _no_images(root: Path) -> None:
    suffixes = ", ".join(IMAGE_SUFFIXES)
    raise DataError(
        f"{root}: no images in class folders: expected {root}/CLASS/NAME.jpg (or {suffixes})"
    )


def _first_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _walk_classes(tree: Path) -> Iterator[tuple[str, str, int]]:
    """Class, path and size of every file below a class folder; hidden ones are left out."""
    for entry in sorted(os.scandir(tree), key=lambda item: item.name):
        if entry.is_dir() and not entry.name.startswith("."):
            for path, size in _walk_files(entry.path):
                yield entry.name, path, size


def _walk_files(folder: str) -> Iterator[tuple[str, int]]:
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk_files(entry.path)
        elif entry.is_file():
            yield entry.path, entry.stat().st_size


def _pair(
    root: Path, files: list[tuple[str, str, int]], index: dict[str, int]
) -> tuple[tuple[SourceImage, ...], int]:
    """Images with their sidecars' sizes, and the number of files that belong to none."""
    sizes = {path: size for _, path, size in files}
    images, used = [], 0
    for name, path, size in files:
        stem, _, suffix = path.rpartition(".")
        if suffix.lower() not in IMAGE_SUFFIXES:
            continue
        sidecars = (sizes.get(f"{stem}.txt", -1), sizes.get(f"{stem}.json", -1))
        used += 1 + sum(sidecar >= 0 for sidecar in sidecars)
        relative = Path(path).relative_to(root).as_posix()
        images.append(SourceImage(relative, index[name], (size, *sidecars)))
    return tuple(sorted(images)), max(0, len(files) - used)


def _divide(images: tuple[SourceImage, ...], share: float) -> dict[str, tuple[SourceImage, ...]]:
    """Split by hash of the path: an image's side does not depend on which others are there."""
    ranks = {image: _hash_share(image.path) for image in images}
    held = {image for image, rank in ranks.items() if rank < share}
    if share > 0 and len(images) > 1:
        by_rank = sorted(images, key=lambda image: ranks[image])
        held = (held or {by_rank[0]}) - {by_rank[-1]}
    train = tuple(image for image in images if image not in held)
    validation = tuple(image for image in images if image in held)
    return {"train": train, "validation": validation} if validation else {"train": train}


def _hash_share(path: str) -> float:
    """A number in [0, 1) that depends on the path alone."""
    digest = hashlib.blake2b(path.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
