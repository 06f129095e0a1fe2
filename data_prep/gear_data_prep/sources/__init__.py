"""What can be sharded: a source a file; `open_source` finds the one that an address needs."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from gear_data_prep.sources.base import Source
from gear_data_prep.sources.files import Place, SourceOptions, open_root
from gear_dist.data.split_names import folder_split
from gear_dist.data.tar_samples import IMAGE_SUFFIXES as _NAMES
from gear_dist.errors import ConfigError, DataError
from gear_dist.storage.addresses import parse_address
from gear_dist.storage.base import Storage
from gear_dist.storage.local import FileStorage
from gear_dist.storage.paths import expand_user, local_path

IMAGE_SUFFIXES = tuple(f".{name}" for name in _NAMES)
Opener = Callable[[Place, SourceOptions], Source]


def _image_folder(place: Place, options: SourceOptions) -> Source:
    from gear_data_prep.sources.image_folder import open_image_folder

    return open_image_folder(place, options)


def _imagenet(place: Place, options: SourceOptions) -> Source:
    from gear_data_prep.sources.imagenet import open_imagenet

    return open_imagenet(place, options)


def _webdataset(place: Place, options: SourceOptions) -> Source:
    from gear_data_prep.sources.webdataset_tars import open_webdataset

    return open_webdataset(place, options)


def _parquet(place: Place, options: SourceOptions) -> Source:
    from gear_data_prep.sources.parquet_rows import open_parquet

    return open_parquet(place, options)


def _urls(place: Place, options: SourceOptions) -> Source:
    from gear_data_prep.sources.url_table import open_url_table

    return open_url_table(place, options)


# Each is imported when it is used: workers of a folder need no parquet reader.
KINDS: dict[str, Opener] = {
    "folder": _image_folder,
    "imagenet": _imagenet,
    "webdataset": _webdataset,
    "parquet": _parquet,
    "urls": _urls,
}


class SourceSpec(NamedTuple):
    """All that opens a source again; kept with the corpus."""

    address: str
    kind: str
    """A key of KINDS."""
    options: SourceOptions
    endpoint: str = ""

    def dump(self) -> dict[str, object]:
        """As JSON; the endpoint is a matter of where it runs, not of the corpus."""
        return {"address": self.address, "kind": self.kind, "options": self.options._asdict()}

    @classmethod
    def load(cls, node: dict, endpoint: str = "") -> "SourceSpec":
        """The spec of `dump`; KeyError or TypeError where it is damaged."""
        options = {**node["options"], "classes": tuple(node["options"]["classes"])}
        return cls(node["address"], node["kind"], SourceOptions(**options), endpoint)


def make_spec(
    address: str,
    kind: str,
    options: SourceOptions,
    endpoint: str = "",
    *,
    tell: Callable[[str], None] | None = None,
) -> SourceSpec:
    """The spec of a source; `auto` looks at what is there.

    Args:
        tell: hears why, where `auto` had a choice.

    Raises:
        ConfigError: an unknown kind, no address, or one where `auto` cannot tell.
        DataError: nothing is there.
    """
    parsed = parse_address(address, "SOURCE")
    if kind == "auto":
        kind, why = _guess(open_root(address, endpoint))
        if why and tell is not None:
            tell(why)
    if kind not in KINDS:
        raise ConfigError(f"--kind {kind}: use auto, {', '.join(KINDS)}")
    if not parsed.bucket:
        address = expand_user(local_path(parsed.path)).absolute().as_uri()
    return SourceSpec(address, kind, options, endpoint)


def open_source(spec: SourceSpec) -> Source:
    """List a source.

    Raises:
        DataError: it is missing or holds nothing of that kind.
    """
    return KINDS[spec.kind](open_root(spec.address, spec.endpoint), spec.options)


_LOOKED_AT, _DEPTH = 20, 3
"""Folders of a folder, and levels, that are looked into for a picture."""
_KIND_BY_SUFFIX = {".tar": "webdataset", ".parquet": "parquet", ".csv": "urls", ".tsv": "urls"}


def _guess(place: Place) -> tuple[str, str]:
    """The kind, by the first file names, and why where there was a choice.

    Pictures decide: tables beside them are notes about them. Tars decide over the tables that
    downloaders write beside them.

    Raises:
        ConfigError: pictures and tars.
    """
    names = [place.only] if place.only else _some_names(place.storage)
    if any("ilsvrc2012_img_" in name.lower() for name in names):
        return "imagenet", ""
    found = {suffix: _first_with(names, suffix) for suffix in _KIND_BY_SUFFIX}
    found = {suffix: name for suffix, name in found.items() if name}
    picture = "" if place.only else _first_with(names, IMAGE_SUFFIXES) or _first_picture(place)
    if picture and ".tar" in found:
        raise ConfigError(
            f"SOURCE {place.storage.address}: holds pictures, such as {picture}, and tars, such as "
            f"{found['.tar']}: say which by --kind folder or --kind webdataset"
        )
    if picture:
        others = ", ".join(found.values())
        why = f"taken for a folder of pictures ({picture}); {others} is left alone (see --kind)"
        return "folder", why if others else ""
    if not found:
        return "folder", ""
    suffix = next(iter(found))
    kind = _KIND_BY_SUFFIX[suffix]
    others = ", ".join(name for name in list(found.values())[1:])
    why = f"taken for {kind} ({found[suffix]}); {others} is left alone (see --kind)"
    return kind, why if others else ""


def _first_with(names: list[str], suffixes: str | tuple[str, ...]) -> str:
    return next((name for name in names if name.lower().endswith(suffixes)), "")


def _first_picture(place: Place) -> str:
    """A picture in the first folders of a local tree, three levels deep; empty: none."""
    if not isinstance(place.storage, FileStorage):
        return ""
    root = place.storage.root
    for folder, folders, names in os.walk(root):
        depth = len(Path(folder).relative_to(root).parts)
        shown = sorted(name for name in folders if not name.startswith("."))
        folders[:] = shown[:_LOOKED_AT] if depth < _DEPTH else []
        if found := _first_with(sorted(n for n in names if n[0] != "."), IMAGE_SUFFIXES):
            return (Path(folder) / found).relative_to(root).as_posix()
    return ""


def _some_names(storage: Storage) -> list[str]:
    """Names of files at the top, and in folders that splits or parts may have."""
    if not isinstance(storage, FileStorage):
        listed = storage.list()
        return [item.key for item, _ in zip(listed, range(1000), strict=False)]
    if not storage.root.is_dir():
        raise DataError(f"{storage.root}: no such file or folder")
    names = []
    for entry in sorted(storage.root.iterdir())[:1000]:
        names.append(entry.name)
        if entry.is_dir() and (folder_split(entry.name) or entry.name in ("data", "shards")):
            names += [path.name for path, _ in zip(entry.iterdir(), range(100), strict=False)]
    return names
