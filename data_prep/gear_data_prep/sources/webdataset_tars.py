"""Webdataset tars of others: {key}.jpg with {key}.txt, {key}.json ("caption") or {key}.cls."""

import io
from typing import NamedTuple

from gear_data_prep.samples import (
    MAX_SIDECAR_BYTES,
    BadSampleError,
    RawSample,
    Sidecar,
    parse_sidecar,
)
from gear_data_prep.sources.base import Source, group_by_split, make_splits
from gear_data_prep.sources.files import (
    Place,
    SourceFile,
    SourceOptions,
    find_files,
    is_remote,
    read_at,
)
from gear_data_prep.sources.image_folder import SUFFIXES
from gear_data_prep.sources.tar_runs import (
    Group,
    TarRun,
    group_members,
    is_hidden,
    list_runs,
)
from gear_dist.data.tar_members import TarDamageError, walk_members
from gear_dist.errors import DataError
from gear_dist.storage import Storage

_CAPTION_SUFFIXES = ("txt", "caption")


class TarReader(NamedTuple):
    """Reads runs of webdataset samples."""

    storage: Storage
    remote: bool
    caption_field: str

    def read(self, unit: TarRun) -> list[RawSample]:
        """A run's samples; DataError where the tar is not what it was when it was listed."""
        data = self.storage.read_range(unit.key, unit.start, unit.length)
        return [self._sample(unit, group, data) for group in parse_run(unit, data)]

    def _sample(self, unit: TarRun, group: Group, data: bytes) -> RawSample:
        parts: dict[str, bytes] = {}
        for member in group.members:
            suffix = member.name.rpartition("/")[2].partition(".")[2].lower()
            parts.setdefault(suffix, data[member.offset : member.offset + member.size])
        name = f"{unit.key}/{group.key}"
        images = [suffix for suffix in parts if suffix.rpartition(".")[2] in SUFFIXES]
        if not images:
            problem = BadSampleError("no-image", "it has no image")
            return RawSample(name, b"", "", problem=problem)
        try:
            captions, attributes = self._texts(parts)
            class_index = _class_index(parts)
        except BadSampleError as error:
            return RawSample(name, parts[images[0]], "", problem=error)
        suffix = images[0].rpartition(".")[2]
        return RawSample(name, parts[images[0]], suffix, class_index, captions, attributes)

    def _texts(self, parts: dict[str, bytes]) -> Sidecar:
        """Captions (of the sidecar where it has any, else of the text file) and attributes."""
        texts = tuple(parts[suffix] for suffix in _CAPTION_SUFFIXES if suffix in parts)
        sidecar = parts.get("json", b"{}")
        if max(map(len, (*texts, sidecar))) > MAX_SIDECAR_BYTES:
            raise BadSampleError("sidecar", f"its texts exceed {MAX_SIDECAR_BYTES} bytes")
        captions, attributes = parse_sidecar(sidecar, self.caption_field, strict=False)
        return Sidecar(captions or texts[:1], attributes)  # type: ignore[arg-type]


def parse_run(unit: TarRun, data: bytes) -> list[Group]:
    """The groups of a run's bytes.

    Raises:
        DataError: they are not those that the listing saw.
    """
    try:
        walk = walk_members(read_at(io.BytesIO(data)), 0, len(data))
        groups = list(group_members(member for member in walk if not is_hidden(member.name)))
    except TarDamageError:
        groups = []
    if len(groups) != unit.num_samples:
        raise DataError(
            f"{unit.key}: changed since it was listed (bytes {unit.start} to "
            f"{unit.start + unit.length}): run the same command again"
        )
    return groups


def open_webdataset(place: Place, options: SourceOptions) -> Source:
    """List tars; those whose names or folders say `val` or `validation` are that split.

    Raises:
        DataError: no tars, or none with a sample.
    """
    storage, only = place.storage, place.only
    found = {item.key: item.bytes for item in find_files(storage, only, (".tar",))}
    splits, damaged = {}, []
    for split, keys in group_by_split(found).items():
        files = [SourceFile(storage, key, found[key]) for key in keys]
        splits[split], broken = list_runs(files, options.block_samples)
        damaged += broken
    if not len(splits["train"]):
        why = f": {damaged[0].name}: {damaged[0].reason}" if damaged else ""
        raise DataError(f"{storage.address}: its tars hold no samples{why}")
    reader = TarReader(storage, is_remote(storage), options.caption_column or "caption")
    return Source(
        storage.address,
        reader,
        options.classes,
        make_splits({k: v for k, v in splits.items() if len(v)}, options.validation_share),
        tuple(damaged),
    )


def _class_index(parts: dict[str, bytes]) -> int:
    if "cls" not in parts:
        return -1
    text = parts["cls"].strip()
    if not text.isdigit() or len(text) > 9:
        raise BadSampleError("sidecar", "its class is no number")
    return int(text)
