"""Webdataset tars of others: {key}.jpg with {key}.txt, {key}.json ("caption") or {key}.cls."""

import codecs
import io
from typing import NamedTuple

from gear_data_prep.samples import (
    MAX_SIDECAR_BYTES,
    BadSampleError,
    RawSample,
    Sidecar,
    further_images,
    match_types,
    parse_sidecar,
)
from gear_data_prep.sources.base import Source, make_splits
from gear_data_prep.sources.files import (
    Place,
    SourceFile,
    SourceOptions,
    find_files,
    is_remote,
    open_seekable,
    read_at,
)
from gear_data_prep.sources.splits import (
    check_validation_classes,
    class_name,
    group_by_split,
    similar_names,
)
from gear_data_prep.sources.tar_runs import TarRun, list_runs
from gear_dist.data.tar_members import TarDamageError, walk_members
from gear_dist.data.tar_samples import IMAGE_SUFFIXES, TarSample, group_samples
from gear_dist.errors import DataError
from gear_dist.storage.base import Storage

_CAPTION_SUFFIXES = ("txt", "caption")


class TarReader(NamedTuple):
    """Reads runs of webdataset samples."""

    storage: Storage
    remote: bool
    caption_field: str
    origins: bool = False

    def read(self, unit: TarRun) -> list[RawSample]:
        """A run's samples; DataError where the tar is not what it was when it was listed."""
        data = self.storage.read_range(unit.key, unit.start, unit.length)
        return [self._sample(unit, found, data) for found in parse_run(unit, data)]

    def _sample(self, unit: TarRun, found: TarSample, data: bytes) -> RawSample:
        parts = {
            suffix: data[member.offset : member.offset + member.size]
            for suffix, member in found.members.items()
        }
        name = f"{unit.key}/{found.key}"
        images = found.images()
        # An image alone is the picture, whatever it is called.
        suffix = found.picture(IMAGE_SUFFIXES) or (images[0] if len(images) == 1 else "")
        if not suffix:
            names = ", ".join(f"KEY.{image}" for image in images[:3])
            why = f"its names have dots: {names}; which is the picture, KEY.jpg?" if images else ""
            problem = BadSampleError("no-image", why or _no_image(found))
            return RawSample(name, b"", "", problem=problem)
        odd = _oddities(found, [image for image in images if image != suffix])
        stem, _, claim = suffix.rpartition(".")
        # KEY.final.txt is the text of KEY.final.jpg.
        own = {part.removeprefix(f"{stem}."): parts[part] for part in parts if stem}
        parts = {**parts, **own}
        try:
            texts = self._texts(parts)
            types = match_types(texts.caption_types, len(texts.captions))
            class_index = _class_index(parts) if unit.class_index < 0 else unit.class_index
        except BadSampleError as error:
            return RawSample(name, parts[suffix], "", problem=error)
        return RawSample(
            name,
            parts[suffix],
            claim,
            class_index,
            texts.captions,
            texts.attributes,
            odd=odd,
            caption_types=types,
            origin=texts.origin,
        )

    def _texts(self, parts: dict[str, bytes]) -> Sidecar:
        """Captions (of the sidecar where it has any, else of the text file) and attributes."""
        texts = tuple(parts[suffix] for suffix in _CAPTION_SUFFIXES if suffix in parts)
        sidecar = parts.get("json", b"{}")
        if max(map(len, (*texts, sidecar))) > MAX_SIDECAR_BYTES:
            raise BadSampleError("sidecar", f"its texts exceed {MAX_SIDECAR_BYTES} bytes")
        found = parse_sidecar(sidecar, self.caption_field, strict=False, origins=self.origins)
        return found._replace(captions=found.captions or texts[:1])  # type: ignore[arg-type]


def parse_run(unit: TarRun, data: bytes) -> list[TarSample]:
    """The samples in a run's bytes.

    Raises:
        DataError: they are not those that the listing saw.
    """
    try:
        members = walk_members(read_at(io.BytesIO(data)), 0, len(data))
        samples = list(group_samples(members))
    except TarDamageError:
        samples = []
    if len(samples) != unit.num_samples:
        raise DataError(
            f"{unit.key}: changed since it was listed (bytes {unit.start} to "
            f"{unit.start + unit.length}): run the same command again"
        )
    return samples


def open_webdataset(place: Place, options: SourceOptions) -> Source:
    """List tars; those whose names or folders say `val` or `validation` are that split, those of a
    test split are left out. Tars that are called like the images in them, such as n01440764.tar
    with n01440764_18.JPEG, are classes.

    Raises:
        DataError: no tars, none with a sample, or classes that only validation has.
    """
    storage, only = place.storage, place.only
    found = {item.key: item.bytes for item in find_files(storage, only, (".tar",))}
    groups = group_by_split(found, only=bool(only))
    classes = _tar_classes(storage, found, groups.splits)
    index = {name: number for number, name in enumerate(classes)}
    splits, damaged = {}, []
    labels: dict[str, str] = {}
    for split, keys in groups.splits.items():
        files = [SourceFile(storage, key, found[key]) for key in keys]
        class_of = [index.get(_stem(key), -1) for key in keys]
        splits[split], broken, said = list_runs(files, options.block_samples, class_of)
        damaged += broken
        labels |= said
    if not len(splits["train"]):
        why = f": {damaged[0].name}: {damaged[0].reason}" if damaged else ""
        raise DataError(f"{storage.address}: its tars hold no samples{why}")
    field = options.caption_column or "caption"
    reader = TarReader(storage, is_remote(storage), field, options.origins)
    return Source(
        storage.address,
        reader,
        options.classes or classes,
        make_splits({k: v for k, v in splits.items() if len(v)}, options.validation_share),
        tuple(damaged),
        notes=(*groups.notes, *similar_names(classes), *_label_note({} if classes else labels)),
    )


def _stem(key: str) -> str:
    return class_name(key.rpartition("/")[2].rpartition(".")[0])


def _tar_classes(
    storage: Storage, sizes: dict[str, int], splits: dict[str, list[str]]
) -> tuple[str, ...]:
    """Names of the tars where each is a class, sorted; else none.

    Raises:
        DataError: classes that only validation has.
    """
    names = {split: {_stem(key) for key in keys} for split, keys in splits.items()}
    keys = [key for listed in splits.values() for key in listed]
    if len(keys) < 2 or not all(
        _is_class_tar(SourceFile(storage, key, sizes[key])) for key in keys
    ):
        return ()
    check_validation_classes(storage.address, names["train"], names.get("validation", set()))
    return tuple(sorted(set().union(*names.values())))


def _is_class_tar(file: SourceFile) -> bool:
    """Whether the first sample is called after its tar, and says no class of its own."""
    try:
        with open_seekable(file.storage, file.key) as stream:
            first = next(group_samples(walk_members(read_at(stream), 0, file.bytes)), None)
    except TarDamageError:
        return False
    if first is None or "cls" in first.members:
        return False
    return class_name(first.key.rpartition("/")[2]).startswith(f"{_stem(file.key)}_")


def _no_image(found: TarSample) -> str:
    """Where a tar has all images first and all texts after them, no two members are neighbours."""
    names = ", ".join(f"KEY.{suffix}" for suffix in list(found.members)[:3])
    return (
        f"it has no image, only {names}: members of a key must be neighbours in the tar, so add "
        "them sorted by name"
    )


def _label_note(labels: dict[str, str]) -> tuple[str, ...]:
    """A warning where a JSON says a class, which is not where it is read."""
    if not labels:
        return ()
    key = min(labels)
    return (
        f"WARNING: {key}: KEY.json has a member {labels[key]}, which is not read as a class: put "
        "the class as a whole number from 0 on in a KEY.cls beside it",
    )


def _oddities(found: TarSample, further: list[str]) -> dict[str, str]:
    odd = further_images(further)
    if found.twice:
        odd["duplicate-name"] = f"it has two members of one name: {found.twice[0].name}"
    return odd


def _class_index(parts: dict[str, bytes]) -> int:
    if "cls" not in parts:
        return -1
    text = parts["cls"].removeprefix(codecs.BOM_UTF8).strip()
    if not text.isdigit() or len(text) > 9:
        shown = text[:40].decode(errors="replace")
        raise BadSampleError(
            "sidecar",
            f"its class {shown!r} is not a number: KEY.cls holds a whole number from 0 on, and "
            "--classes FILE the names",
        )
    return int(text)
