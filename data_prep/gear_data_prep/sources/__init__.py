"""What can be sharded: a source a file; `open_source` finds the one that an address needs."""

from collections.abc import Callable
from typing import NamedTuple

from gear_data_prep.sources.base import Source
from gear_data_prep.sources.files import Place, SourceOptions, open_root
from gear_dist.addresses import parse_address
from gear_dist.errors import ConfigError, DataError
from gear_dist.paths import expand_user, local_path
from gear_dist.storage import FileStorage, Storage

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


def make_spec(address: str, kind: str, options: SourceOptions, endpoint: str = "") -> SourceSpec:
    """The spec of a source; `auto` looks at what is there.

    Raises:
        ConfigError: an unknown kind, or no address.
        DataError: nothing is there.
    """
    parsed = parse_address(address, "SOURCE")
    if kind == "auto":
        kind = _guess(open_root(address, endpoint))
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


_KIND_BY_SUFFIX = {".tar": "webdataset", ".parquet": "parquet", ".csv": "urls", ".tsv": "urls"}


def _guess(place: Place) -> str:
    """The kind, by the first file names; a table of URLs is asked for by name."""
    names = [place.only] if place.only else _some_names(place.storage)
    if any("ilsvrc2012_img_" in name.lower() for name in names):
        return "imagenet"
    for suffix, kind in _KIND_BY_SUFFIX.items():
        if any(name.lower().endswith(suffix) for name in names):
            return kind
    return "folder"


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
        if entry.is_dir() and entry.name in ("train", "val", "validation", "data", "shards"):
            names += [path.name for path, _ in zip(entry.iterdir(), range(100), strict=False)]
    return names
