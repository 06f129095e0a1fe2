"""Features of captions on a disk, in place of an encoder that runs in training.

FOLDER/plan.json                what is being written: `CacheRecord`
FOLDER/part-00000.safetensors   features (M, F), lengths and hidden (n,), captions' digests (n, 16)
FOLDER/cache.json               the same as plan.json; written last: "complete"

Each part is published whole, and depends on the record and the captions alone, so that a killed
build goes on with the parts that are not there. Shapes: n captions of a part, M rows of all of
them, F feature width.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from gear_dist.errors import ConfigError, DataError
from gear_dist.models.generator.conditioning import TextCondition
from gear_dist.models.text_encoders.base import CaptionFeatures, TextEncoder
from gear_dist.models.text_encoders.fingerprint import Fingerprint, check_fingerprint
from gear_dist.storage.atomic import make_folder, remove_file, write_file
from gear_dist.storage.json_files import build_record, parse_json, to_json

FORMAT = 1
SETTING = "data.caption_features"
PLAN_NAME, CACHE_NAME = "plan.json", "cache.json"
PART_BYTES = 128 << 20
"""Features of a part, at most (or one caption): what a kill can cost."""
_TOKENIZED_AT_ONCE = 1024
_BUILD = "write it with `gear-dist features CONFIG ...` and the settings of the run"


class CacheRecord(NamedTuple):
    """What a cache holds; equal records mean equal files."""

    format: int
    encoder: dict[str, Any]
    """The section text_encoder."""
    fingerprint: dict[str, Any]
    """A `Fingerprint` as plain values."""
    dtype: str
    source: dict[str, Any]
    """Which captions of which corpora."""
    num_captions: int
    num_rows: int
    part_captions: tuple[int, ...]
    """Captions of each part."""

    @property
    def num_bytes(self) -> int:
        """Of the features."""
        return self.num_rows * self.fingerprint["width"] * dtype_of(self.dtype).itemsize


class CaptionPlan(NamedTuple):
    """Captions, each once, with what they take."""

    captions: tuple[str, ...]
    num_rows: int
    part_captions: tuple[int, ...]


def dtype_of(name: str) -> torch.dtype:
    """The dtype of a record; DataError where it is none that features have."""
    found = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(name)
    if found is None:
        raise DataError(f"{SETTING}: features of dtype {name} are not known")
    return found


def plan_captions(captions: Sequence[str], encoder: TextEncoder) -> CaptionPlan:
    """Cut captions into parts; tokenizes all of them and encodes none."""
    unique = tuple(dict.fromkeys(captions))
    row_bytes = encoder.width * encoder.dtype.itemsize
    parts, rows, in_part, total = [], 0, 0, 0
    for first in range(0, len(unique), _TOKENIZED_AT_ONCE):
        for ids in encoder.tokenize(unique[first : first + _TOKENIZED_AT_ONCE]):
            more = encoder.num_rows(ids)
            if in_part and (rows + more) * row_bytes > PART_BYTES:
                parts.append(in_part)
                rows = in_part = 0
            rows, in_part, total = rows + more, in_part + 1, total + more
    return CaptionPlan(unique, total, (*parts, in_part) if in_part else ())


def begin_cache(folder: Path, record: CacheRecord) -> bool:
    """Claim a folder for a cache, new or one that was begun with the same record.

    Returns:
        Whether it is complete already.

    Raises:
        ConfigError: the folder holds something else; says what differs.
        StorageError: it cannot be written.
    """
    if folder.is_dir():
        for name in (CACHE_NAME, PLAN_NAME):
            if (folder / name).exists():
                _check_same(folder, _read_record(folder / name), record, "remove it")
                return name == CACHE_NAME
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise ConfigError(f"{SETTING}={folder}: is not empty, and no cache: name a new folder")
    elif folder.exists():
        raise ConfigError(f"{SETTING}={folder}: is a file: name a folder")
    make_folder(folder)
    write_file(folder / PLAN_NAME, _dump(record))
    return False


def write_parts(
    folder: Path,
    record: CacheRecord,
    captions: Sequence[str],
    encoder: TextEncoder,
    on_part: Callable[[int, bool], None],
) -> None:
    """Encode captions and publish the cache; parts that are there are left as they are.

    Args:
        folder: see `begin_cache`.
        record: likewise.
        captions: as many as its parts have together.
        encoder: the frozen encoder.
        on_part: told of each part's captions, and whether it was found.

    Raises:
        StorageError: the disk refuses.
    """
    first = 0
    for number, count in enumerate(record.part_captions):
        path = _part_path(folder, number)
        found = path.exists() and _is_whole(path, count)
        if not found:
            write_file(path, _encode_part(captions[first : first + count], encoder))
        on_part(count, found)
        first += count
    write_file(folder / CACHE_NAME, _dump(record))
    remove_file(folder / PLAN_NAME)


def _encode_part(captions: Sequence[str], encoder: TextEncoder) -> bytes:
    with torch.no_grad():
        found = encoder.encode(encoder.tokenize(captions))
    digests = b"".join(map(_digest, captions))
    return save(
        {
            "features": torch.cat([item.features_TF for item in found]).to(encoder.dtype).cpu(),
            "lengths": torch.tensor([len(item.features_TF) for item in found]),
            "hidden": torch.tensor([item.hidden for item in found]),
            "digests": torch.frombuffer(bytearray(digests), dtype=torch.uint8).view(-1, 16),
        }
    )


class FeatureCache:
    """Features of captions by their text; files are mapped, so that memory holds what is read."""

    def __init__(self, folder: Path, record: CacheRecord) -> None:
        """Open a complete cache.

        Raises:
            DataError: a part is missing or damaged.
        """
        self.folder, self.record = folder, record
        self._slices: list[Any] = []
        self._places: dict[bytes, tuple[int, int, int, bool]] = {}
        for number, count in enumerate(record.part_captions):
            self._open_part(number, count)
        self._null = self[""]

    def _open_part(self, number: int, count: int) -> None:
        path = _part_path(self.folder, number)
        try:
            file = safe_open(path, framework="pt")
            self._slices.append(file.get_slice("features"))
            lengths = file.get_tensor("lengths").tolist()
            hidden = file.get_tensor("hidden").tolist()
            digests = file.get_tensor("digests").numpy()
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{path}: missing or damaged ({error}): remove it and {_BUILD}"
            ) from None
        if len(lengths) != count:
            raise DataError(f"{path}: has {len(lengths)} captions, not {count}: remove the folder")
        start = 0
        for digest, length, is_hidden in zip(digests, lengths, hidden, strict=True):
            self._places[digest.tobytes()] = (number, start, length, is_hidden)
            start += length

    def __getitem__(self, caption: str) -> CaptionFeatures:
        """Features on the CPU; DataError for a caption that is not there."""
        place = self._places.get(_digest(caption))
        if place is None:
            raise DataError(
                f"{SETTING}={self.folder}: has no features of the caption {caption[:60]!r}: "
                f"{_BUILD}"
            )
        part, start, length, hidden = place
        return CaptionFeatures(self._slices[part][start : start + length], hidden)

    def condition(self, captions: Sequence[str], device: torch.device) -> TextCondition:
        """What `TextEncoder.forward` gives for the captions."""
        rows = [self[caption] for caption in captions]
        return TextCondition(
            torch.cat([row.features_TF for row in rows]),
            tuple(len(row.features_TF) for row in rows),
            tuple(row.hidden for row in rows),
            self._null.features_TF,
            self._null.hidden,
        ).to(device)


def open_cache(folder: Path, expected: CacheRecord) -> FeatureCache:
    """The cache of a run.

    Args:
        folder: where it is.
        expected: what the run needs; its counts are not compared.

    Raises:
        ConfigError: it is not there, is not complete, or another encoder's or corpus's.
        DataError: it is damaged.
    """
    path = folder / CACHE_NAME
    if not path.exists():
        begun = "is not complete" if (folder / PLAN_NAME).exists() else "holds no cache"
        raise ConfigError(f"{SETTING}={folder}: {begun}: {_BUILD}")
    record = _read_record(path)
    _check_same(folder, record, expected._replace(**_counts(record)), "remove the folder")
    return FeatureCache(folder, record)


def _counts(record: CacheRecord) -> dict[str, Any]:
    names = ("num_captions", "num_rows", "part_captions")
    return {name: getattr(record, name) for name in names}


def _check_same(folder: Path, stored: CacheRecord, wanted: CacheRecord, remedy: str) -> None:
    """Raise ConfigError with what differs first."""
    for what, theirs, ours in _differences(stored, wanted):
        raise ConfigError(
            f"{SETTING}={folder}: was written for {what}={theirs}, and this run has {ours}: "
            f"{remedy}, or name another folder, and {_BUILD}"
        )


def _differences(stored: CacheRecord, wanted: CacheRecord) -> Iterator[tuple[str, Any, Any]]:
    if stored.format != wanted.format:
        yield "format", stored.format, wanted.format
    for section, title in (("encoder", "text_encoder"), ("source", "data")):
        theirs, ours = getattr(stored, section), getattr(wanted, section)
        for name in sorted({*theirs, *ours}):
            if theirs.get(name) != ours.get(name):
                yield f"{title}.{name}", theirs.get(name), ours.get(name)
    if stored.dtype != wanted.dtype:
        yield "features of dtype", stored.dtype, f"an encoder in {wanted.dtype}"
    if not _same_encoder(stored.fingerprint, wanted.fingerprint):
        yield "text_encoder", "a model that gives the test prompts other features", "this one"
    if _counts(stored) != _counts(wanted):
        yield "captions", stored.num_captions, wanted.num_captions


def _same_encoder(stored: dict[str, Any], found: dict[str, Any]) -> bool:
    try:
        theirs, ours = build_record(Fingerprint, stored), build_record(Fingerprint, found)
        check_fingerprint(theirs, ours, SETTING)
    except (ConfigError, ValueError):
        return False
    return True


def _is_whole(path: Path, count: int) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_slice("lengths").get_shape() == [count]
    except (OSError, SafetensorError):
        return False


def _part_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.safetensors"


def _digest(caption: str) -> bytes:
    return xxhash.xxh3_128_digest(caption.encode(errors="surrogatepass"))


def _dump(record: CacheRecord) -> bytes:
    return (to_json(record._asdict(), indent=1) + "\n").encode()


def _read_record(path: Path) -> CacheRecord:
    try:
        return build_record(CacheRecord, parse_json(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no record of a feature cache ({error}): remove it") from None


def plain_record(values: Any) -> Any:
    """Values as they are read back from a record."""
    return parse_json(to_json(values))
