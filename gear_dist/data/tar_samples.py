"""Members of a tar to samples, by webdataset's own code: a stock tar means what it means there.

Neighbours of one key are a sample, and a key that returns is another one. Beyond that, numbers
after a dot belong to the key where webdataset would melt images into one sample that nobody could
use, and hidden files, a file system's own, are skipped.
"""

import importlib
import importlib.util
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

from gear_dist.data.tar_members import Member, TarDamageError

READ_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp")
"""Images that the loader reads; where a sample has several, the first of these is the picture."""
IMAGE_SUFFIXES = (*READ_SUFFIXES, "jfif", "gif", "tif", "tiff")
"""Images that sharding reads; jfif is another name of JPEG files."""
_META = re.compile(r"__[^/]*__($|/)")
"""Members that webdataset passes over."""
_PACKAGE = "gear_dist_stock_webdataset"


class TarSample(NamedTuple):
    """Neighbouring members of one key."""

    key: str
    members: dict[str, Member]
    """By suffix, lower case."""
    twice: tuple[Member, ...] = ()
    """Members whose suffix the sample had before, which webdataset refuses."""

    @property
    def start(self) -> int:
        """Of its first header."""
        return next(iter(self.members.values())).start

    @property
    def end(self) -> int:
        """Where the next member's header is."""
        return max(member.end for member in (*self.members.values(), *self.twice))

    def picture(self, suffixes: tuple[str, ...]) -> str:
        """The suffix of its image, one under a plain name such as KEY.jpg; empty: it has none."""
        return next((suffix for suffix in suffixes if suffix in self.members), "")

    def images(self) -> list[str]:
        """Suffixes of all its images: the picture, and such as seg.png or original.jpg."""
        return [suffix for suffix in self.members if _is_image(suffix)]


def group_samples(members: Iterable[Member]) -> Iterator[TarSample]:
    """Samples of a tar's members, in their order.

    Raises:
        TarDamageError: as the members' iteration, after the samples before the damage; a last one
            that may be cut, because it has other parts than the one before, is left out.
    """
    damage: list[TarDamageError] = []
    before: TarSample | None = None
    last: TarSample | None = None
    for whole in _grouped(_until_damage(members, damage), _stock().base_plus_ext):
        for sample in _split_dots(whole):
            if last is not None:
                yield last
            before, last = last, sample
    cut = damage and last and before and set(last.members) != set(before.members)
    if last is not None and not cut:
        yield last
    if damage:
        raise damage[0]


def is_hidden(name: str) -> bool:
    """Whether a member is no part of a sample: a file system's own, such as `._x.jpg`."""
    return name[name.rfind("/") + 1 :][:1] in (".", "")


def sample_key(name: str) -> str:
    """A member's key; its whole name where it has no suffix."""
    return _stock().base_plus_ext(name)[0] or name


def _split_dots(sample: TarSample) -> Iterator[TarSample]:
    """The sample, or those that are in it where all its names continue with a number.

    `photo.001.jpg` and `photo.001.seg.png` are of `photo.001`. But `photo.seg.png` is a part of
    `photo`, and so is everything where a plain `photo.cls` or `photo.jpg` is beside.
    """
    split = all("." in suffix and _split_after_number(f".{suffix}")[0] for suffix in sample.members)
    if split and any(map(_is_image, sample.members)):
        members = (*sample.members.values(), *sample.twice)
        yield from _grouped(sorted(members, key=lambda m: m.start), _split_after_number)
    else:
        yield sample


def _split_after_number(name: str) -> tuple[str, str]:
    """Key and suffix, the key with all parts after dots up to the last that has a digit."""
    folder, slash, base = name.rpartition("/")
    parts = base.split(".")
    numbered = [i for i in range(1, len(parts) - 1) if any(map(str.isdigit, parts[i]))]
    end = max(numbered, default=0) + 1
    return folder + slash + ".".join(parts[:end]), ".".join(parts[end:])


def _grouped(
    members: Iterable[Member], split: Callable[[str], tuple[str | None, str | None]]
) -> Iterator[TarSample]:
    latest: Member | None = None
    twice: list[Member] = []

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal latest
        for latest in members:
            name = latest.name
            if not is_hidden(name) and not (name.startswith("__") and _META.match(name)):
                yield {"fname": name, "data": latest, "__url__": ""}

    def note(error: Exception) -> bool:
        """webdataset's handler; the member is left out, as by its own `warn_and_continue`."""
        assert latest is not None
        twice.append(latest)
        return True

    for group in _stock().group_by_keys(rows(), keys=split, handler=note):
        key = group.pop("__key__")
        del group["__url__"]
        yield TarSample(key, group, tuple(twice))
        twice.clear()


def _until_damage(members: Iterable[Member], damage: list[TarDamageError]) -> Iterator[Member]:
    """Ends in place of the error, which would end the grouping within a sample."""
    try:
        yield from members
    except TarDamageError as error:
        damage.append(error)


def _is_image(suffix: str) -> bool:
    return suffix.rpartition(".")[2] in IMAGE_SUFFIXES


@cache
def _stock() -> Any:
    """webdataset's tariterators, without torch.

    Importing the package imports torch, a second and 200 MB for every sharding process. Its files
    are therefore loaded under a package of our own, with the stand-ins that webdataset's
    `pytorch.py` itself has for machines without torch.
    """
    spec = importlib.util.find_spec("webdataset")
    assert spec is not None, "webdataset is a dependency"
    package = types.ModuleType(_PACKAGE)
    package.__path__ = list(spec.submodule_search_locations or ())
    names = ("IterableDataset", "DataLoader", "TorchTensor")
    stand_ins = types.ModuleType(f"{_PACKAGE}.pytorch")
    vars(stand_ins).update({name: type(name, (), {}) for name in names})
    sys.modules.update({_PACKAGE: package, stand_ins.__name__: stand_ins})
    return importlib.import_module(f"{_PACKAGE}.tariterators")
