"""ImageFolder trees: CLASS/NAME.jpg with optional sidecars NAME.txt and NAME.json."""

import errno
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gear_data_prep.samples import (
    MAX_SAMPLE_BYTES,
    MAX_SIDECAR_BYTES,
    BadSampleError,
    RawSample,
    further_images,
    parse_sidecar,
)
from gear_data_prep.sources.base import Source, make_splits
from gear_data_prep.sources.files import Place, SourceOptions
from gear_data_prep.sources.folder_layout import pick_pictures, warn_of_layout
from gear_data_prep.sources.folder_messages import no_classes, note_ignored
from gear_data_prep.sources.labels import read_labels
from gear_data_prep.sources.splits import (
    check_validation_classes,
    class_name,
    similar_names,
)
from gear_dist.data.split_names import TEST, folder_split
from gear_dist.data.tar_samples import IMAGE_SUFFIXES as SUFFIXES
from gear_dist.data.tar_samples import sample_key
from gear_dist.data.tar_writer import SAMPLE_OVERHEAD_BYTES
from gear_dist.errors import DataError
from gear_dist.storage.base import Storage
from gear_dist.storage.file_kinds import is_hidden
from gear_dist.storage.local import FileStorage

_ENDS = [f".{end}" for name in SUFFIXES for end in (name, name.upper(), name.capitalize())]


class TreeImage(NamedTuple):
    """An image file of a tree, as its listing shows it: a unit of one sample."""

    path: str
    """Relative to the source's root, with slashes."""
    class_index: int
    sizes: tuple[int, int, int]
    """Bytes of the image, of its caption and of its attributes; -1: no such sidecar."""
    further: tuple[str, ...] = ()
    """Names of the sample's other images, such as its mask."""

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
        beside = f" {self.further}" if self.further else ""
        return f"{self.class_index} {self.sizes} {self.path}{beside}"


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
        sample = RawSample(
            unit.path, image, suffix, unit.class_index, captions, attributes, problem
        )
        return [sample._replace(odd=further_images(unit.further))]


class _Tree(NamedTuple):
    """The images of a tree by split."""

    depth: int
    """Of the class folders: 1 below folders of splits."""
    splits: dict[str, list[str]]
    flat: list[str]
    """Images of validation outside class folders."""
    notes: tuple[str, ...]


def open_image_folder(place: Place, options: SourceOptions) -> Source:
    """List an ImageFolder tree.

    ROOT/{train,val}/CLASS/... gives the two splits; ROOT/CLASS/... (or ROOT/train/CLASS/... alone)
    is divided by a hash of each image's relative path. Classes are those that have images, in
    the order of their names, the same for both splits. Images of validation outside class folders
    have their classes in a file of labels. A test split, and what is in none, is left out.

    Raises:
        DataError: no such folder, no class folders, no images, splits that contradict each other.
    """
    storage, only = place.storage, place.only
    local = isinstance(storage, FileStorage)
    if only:
        raise DataError(f"{storage.address}/{only}: a file, not an ImageFolder tree")
    if local and not storage.root.is_dir():  # type: ignore[attr-defined]
        raise DataError(
            f"{storage.address}: no such folder; SOURCE is an ImageFolder tree, CLASS/NAME.jpg"
        )
    dangling: list[str] = []
    walk = _walk(storage.root, dangling) if local else _listed(storage)  # type: ignore[attr-defined]
    sizes = dict(walk)
    tree, further = _only_pictures(_split(storage.address, sizes))
    found = {
        split: {_class_of(path, tree.depth) for path in paths}
        for split, paths in tree.splits.items()
    }
    classes = sorted(set().union(*found.values()))
    if not classes:
        raise no_classes(storage.address, sizes)
    if not tree.splits["train"]:
        raise DataError(f"{storage.address}/train: no images in class folders")
    check_validation_classes(storage.address, found["train"], found.get("validation", set()))
    index = {name: number for number, name in enumerate(classes)}
    units = {
        split: [_unit(path, index[_class_of(path, tree.depth)], sizes) for path in paths]
        for split, paths in tree.splits.items()
    }
    if tree.flat:
        units["validation"] = _flat_units(storage.address, tree.flat, options.labels, index, sizes)
    units = {
        split: [_with_further(unit, further) for unit in listed] if further else listed
        for split, listed in units.items()
        if listed
    }
    return Source(
        storage.address,
        TreeReader(storage, not local),
        tuple(classes),
        make_splits(units, options.validation_share),
        notes=(
            *tree.notes,
            *note_ignored(_ignored(tree, sizes)),
            *_further_note(further),
            *similar_names(classes),
            *_dangling_note(dangling),
            *warn_of_layout(storage.address, tree.splits["train"], tree.depth),
        ),
    )


def _only_pictures(tree: _Tree) -> tuple[_Tree, dict[str, tuple[str, ...]]]:
    """The tree without further images of a sample, and those by the path of its picture."""
    splits = {split: pick_pictures(paths) for split, paths in tree.splits.items()}
    flat = pick_pictures(tree.flat)
    further = dict(flat.further)
    for pictures in splits.values():
        further |= pictures.further
    paths = {split: pictures.paths for split, pictures in splits.items()}
    return tree._replace(splits=paths, flat=flat.paths), further


def _with_further(unit: TreeImage, further: dict[str, tuple[str, ...]]) -> TreeImage:
    names = tuple(path.rpartition("/")[2] for path in further.get(unit.path, ()))
    return unit._replace(further=names) if names else unit


def _further_note(further: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    if not further:
        return ()
    picture, others = min(further.items())
    count = sum(map(len, further.values()))
    return (
        f"{count:,} files are further images of a sample, such as {others[0]} beside {picture}, "
        "which is the picture: left out (extra-image)",
    )


def _dangling_note(links: list[str]) -> tuple[str, ...]:
    if not links:
        return ()
    return (f"{len(links):,} broken symlinks, such as {min(links)}: left out",)


def _split(address: str, sizes: dict[str, int]) -> _Tree:
    """Image paths by split.

    Raises:
        DataError: two folders of one split, or validation without train.
    """
    images = [path for path in sizes if path.rpartition(".")[2].lower() in SUFFIXES]
    folders = _split_folders(address, images)
    if "train" not in folders:
        if "validation" in folders:
            raise DataError(
                f"{address}: {folders['validation']}/ is there, and no train/: add it, rename the "
                "folder, or give the folder itself as SOURCE"
            )
        nested = [path for path in images if "/" in path]
        _check_level(address, nested)
        return _Tree(0, {"train": nested}, [], _left_out(address, images, nested))
    splits = {
        split: [p for p in images if p.startswith(f"{name}/") and p.count("/") > 1]
        for split, name in folders.items()
        if split != TEST
    }
    flat = []
    if name := folders.get("validation"):
        flat = sorted(p for p in images if p.startswith(f"{name}/") and p.count("/") == 1)
    if flat and splits["validation"]:
        raise DataError(
            f"{address}/{name}: {len(flat):,} of its images are outside its class folders, such as "
            f"{flat[0]}: move them into one, or away"
        )
    used = [*flat, *(path for paths in splits.values() for path in paths)]
    return _Tree(1, splits, flat, _left_out(address, images, used))


def _check_level(address: str, images: list[str]) -> None:
    """Raise DataError where the splits are one folder further down."""
    tops = {path.partition("/")[0] for path in images}
    below = {path.split("/")[1] for path in images if path.count("/") > 1}
    if len(tops) == 1 and any(folder_split(name) == "train" for name in below):
        raise DataError(
            f"{address}: its splits are in {min(tops)}/, one folder further down: give that as "
            "SOURCE"
        )


def _split_folders(address: str, images: list[str]) -> dict[str, str]:
    """Top folders with images that are called like a split, by split."""
    found: dict[str, str] = {}
    for name in sorted({path.partition("/")[0] for path in images if "/" in path}):
        split = folder_split(name)
        if split in found and split != TEST:
            raise DataError(
                f"{address}: {found[split]}/ and {name}/ are both folders of the {split} split: "
                "rename or remove one"
            )
        if split:
            found.setdefault(split, name)
    # Without train/ a folder called test is a class like others.
    return found if set(found) != {TEST} else {}


def _left_out(address: str, images: list[str], used: list[str]) -> tuple[str, ...]:
    """A note for each place that has images which are in no split."""
    places: Counter[str] = Counter()
    for path in set(images) - set(used):
        top, slash, _ = path.partition("/")
        places[f"{top}/" if slash else "its top"] += 1
    return tuple(
        f"{count:,} images in {place} are left out: in no class folder of a split"
        if folder_split(place.rstrip("/")) != TEST
        else f"{count:,} images in {place} are left out: a test split"
        for place, count in sorted(places.items())
    )


def _flat_units(
    address: str, paths: list[str], labels: str, index: dict[str, int], sizes: dict[str, int]
) -> list[TreeImage]:
    """Validation images of a file of labels.

    Raises:
        DataError: there is none, or it does not fit.
    """
    folder = paths[0].partition("/")[0]
    if not labels:
        raise DataError(
            f"{address}/{folder}: {len(paths):,} images outside class folders: give their classes "
            "by --labels FILE, or move them into class folders"
        )
    keys = [sample_key(path.rpartition("/")[2]) for path in paths]
    class_of = read_labels(labels, keys, index)
    return [_unit(path, class_of[key], sizes) for path, key in zip(paths, keys, strict=True)]


def _ignored(tree: _Tree, sizes: dict[str, int]) -> Iterator[str]:
    """Files in class folders that are neither images nor sidecars of one."""
    for path in sizes:
        top = path.partition("/")[0]
        in_split = tree.depth == 0 or folder_split(top) in tree.splits
        if path.count("/") <= tree.depth or not in_split:
            continue
        stem, _, suffix = path.rpartition(".")
        is_sidecar = suffix in ("txt", "json") and any(f"{stem}{end}" in sizes for end in _ENDS)
        if suffix.lower() not in SUFFIXES and not is_sidecar:
            yield path


def _class_of(path: str, depth: int) -> str:
    return class_name(path.split("/")[depth])


def _unit(path: str, class_index: int, sizes: dict[str, int]) -> TreeImage:
    stem = path.rpartition(".")[0]
    sidecars = sizes.get(f"{stem}.txt", -1), sizes.get(f"{stem}.json", -1)
    return TreeImage(path, class_index, (sizes[path], *sidecars))


def _listed(storage: Storage) -> Iterator[tuple[str, int]]:
    for item in storage.list():
        if not any(map(is_hidden, item.key.split("/"))):
            yield item.key, item.bytes


def _is_circle(entry: os.DirEntry[str]) -> bool:
    """Whether it is a link that leads back to itself: nothing is there."""
    try:
        entry.is_file()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _walk(root: Path, dangling: list[str]) -> Iterator[tuple[str, int]]:
    """Relative path and size of every file that is not hidden; links to nothing go to `dangling`.

    Links to folders are followed; one that leads back to a folder it is in ends there.

    Raises:
        DataError: two names of one folder, whose images would be in two places.
    """
    pending: list[tuple[str, str, frozenset[tuple[int, int]]]] = [
        (os.fspath(root), "", frozenset())
    ]
    seen: dict[tuple[int, int], str] = {}
    while pending:
        folder, prefix, above = pending.pop()
        status = os.stat(folder)
        number = (status.st_dev, status.st_ino)
        if number in above:
            continue
        if number in seen:
            raise DataError(
                f"{root}: {prefix} and {seen[number]} are the same folder (symlink), so its "
                f"images would be counted twice; remove the link"
            )
        seen[number] = prefix
        for entry in os.scandir(folder):
            if is_hidden(entry.name):
                continue
            if _is_circle(entry) or not os.path.exists(entry.path):
                dangling.append(prefix + entry.name)
                continue
            if entry.is_dir():
                pending.append((entry.path, f"{prefix}{entry.name}/", above | {number}))
            elif entry.is_file():
                yield prefix + entry.name, entry.stat().st_size
