"""Which images of a tree are samples, and folders that may not be the classes they are read as."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gear_dist.data.split_names import TEST, TRAIN, VALIDATION, folder_split
from gear_dist.data.tar_samples import IMAGE_SUFFIXES

_MASKS = {
    *("mask", "masks", "annotation", "annotations", "label", "labels", "seg", "segs", "matte"),
    *("mattes", "trimap", "trimaps", "depth", "depths", "gt", "ground_truth", "groundtruth"),
    *("segmentation", "segmentations", "segmentationclass", "segmentationobject"),
}
_PICTURES = {"image", "images", "img", "imgs", "jpegimages"}
_SHOWN = 5


class Pictures(NamedTuple):
    """The images of a tree that are samples."""

    paths: list[str]
    """In their order."""
    further: dict[str, tuple[str, ...]]
    """Paths of the other images of a sample, such as its mask, by the path of its picture."""


def pick_pictures(paths: Iterable[str]) -> Pictures:
    """Images of one name in one folder are a sample, as in a tar, and one of them is the picture.

    `0.jpg` and `0.png` have one name, and `0.mask.png` is of the sample `0` where a plain `0.jpg`
    is beside. Of several plain names the first of IMAGE_SUFFIXES is the picture. A number after the
    dot belongs to the name: `photo.1.jpg` is a picture of its own.
    """
    folders: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        folders[path.rpartition("/")[0]].append(path)
    found: list[str] = []
    further: dict[str, tuple[str, ...]] = {}
    for name, folder in folders.items():
        stems = {path.rpartition(".")[0] for path in folder}
        if len(stems) == len(folder) and not any("." in stem[len(name) :] for stem in stems):
            found += folder
            continue
        for picture, others in _samples(folder).items():
            found.append(picture)
            if others:
                further[picture] = tuple(sorted(others))
    return Pictures(sorted(found), further)


def _samples(paths: list[str]) -> dict[str, list[str]]:
    """The further images of each picture of a folder."""
    stems: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        stems[path.rpartition(".")[0]].append(path)
    pictures = {stem: min(named, key=_precedence) for stem, named in stems.items()}
    samples: dict[str, list[str]] = {}
    # Shorter names first, so that the picture is there before what is beside it.
    for stem in sorted(stems, key=len):
        owner = _owner(stem, pictures)
        others = samples.setdefault(pictures[owner], [])
        others += [path for path in stems[stem] if path != pictures[owner]]
        pictures[stem] = pictures[owner]
    return samples


def _precedence(path: str) -> tuple[int, str]:
    return IMAGE_SUFFIXES.index(path.rpartition(".")[2].lower()), path


def _owner(stem: str, pictures: dict[str, str]) -> str:
    """The name of the sample that an image is part of: the longest one that its own continues."""
    folder, slash, base = stem.rpartition("/")
    parts = base.split(".")
    for end in range(len(parts) - 1, 0, -1):
        name = folder + slash + ".".join(parts[:end])
        if name in pictures and not parts[end].isdigit():
            return name
    return stem


def warn_of_layout(address: str, paths: Sequence[str], depth: int) -> tuple[str, ...]:
    """A warning where the class folders of a tree are probably not its classes.

    Args:
        address: of the source.
        paths: its training images, relative to the source.
        depth: of the class folders: 1 below folders of splits.
    """
    below: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for folder in {path.rpartition("/")[0] for path in paths}:
        parts = folder.split("/")
        below[parts[depth]].add(tuple(parts[depth + 1 :]))
    line = _warn_of_kinds(below) or _warn_of_splits(below) or _warn_of_depth(address, below, depth)
    return (f"WARNING: {line}",) if line else ()


def _warn_of_kinds(below: dict[str, set[tuple[str, ...]]]) -> str:
    """Of folders called after a kind of file: masks would be trained on as pictures."""
    classes = {name for name in below if name.casefold() in _MASKS | _PICTURES}
    inner = {
        f"{name}/{'/'.join(folders)}"
        for name, subs in below.items()
        for folders in subs
        if any(part.casefold() in _MASKS for part in folders)
    }
    if found := sorted(classes):
        return (
            f"{_list(found)} {'is' if len(found) == 1 else 'are'} read as a class of pictures: "
            "move masks and annotations out of SOURCE, and put pictures into folders named after "
            "their classes"
        )
    if found := sorted(inner):
        return f"the images in {_list(found)} are trained on: move masks out of SOURCE"
    return ""


def _warn_of_splits(below: dict[str, set[tuple[str, ...]]]) -> str:
    """Of splits that are read as classes, or as parts of one."""
    splits = {name: _split_in(name) for name in below}
    if len(splits) > 1 and all(splits.values()):
        names = [f"{name}/ to {splits[name]}/" for name in sorted(splits)]
        return f"{_list(sorted(below))} are read as classes: for splits rename {_list(names)}"
    inner = {folder_split(sub[0]) for subs in below.values() for sub in subs if sub}
    if {TRAIN, VALIDATION} <= inner or {TRAIN, TEST} <= inner:
        return (
            "class folders hold folders of splits, and all their images are in train: turn the "
            "folders around, such as train/CLASS and val/CLASS"
        )
    return ""


def _split_in(name: str) -> str:
    """The split that a word of a folder's name names; empty: none does."""
    return next(filter(None, map(folder_split, re.split(r"[-_. ]+", name))), "")


def _warn_of_depth(address: str, below: dict[str, set[tuple[str, ...]]], depth: int) -> str:
    """Of classes whose sub-folders are probably the classes."""
    is_direct = any(() in subs for subs in below.values())
    several = [name for name in sorted(below) if len(below[name] - {()}) > 1]
    if not several or (is_direct and len(below) > 1):
        return ""
    inner = sorted({sub[-1] for name in several for sub in below[name] if sub})
    what = (
        f"the folders {_list(inner)} in {_list([f'{name}/' for name in several])} are not read as "
        f"classes, of which there {'is 1' if len(below) == 1 else f'are {len(below):,}'} "
        f"({_list(sorted(below))}): if they are the classes, "
    )
    if len(below) == 1 and depth == 0:
        common = os.path.commonpath(["/".join((several[0], *sub)) for sub in below[several[0]]])
        return f"{what}give {address}/{common} as SOURCE"
    return f"{what}move them one folder up"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
