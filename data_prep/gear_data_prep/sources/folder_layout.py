"""Which images of a tree are samples: a mask beside a picture is none."""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from gear_dist.data.tar_samples import IMAGE_SUFFIXES


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
    for folder in folders.values():
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
