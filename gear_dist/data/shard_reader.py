"""Webdataset tars to samples: checked against the manifest, parsed sample by sample."""

import json
from typing import Any, NamedTuple, NoReturn

from gear_dist.data.manifest import ShardInfo
from gear_dist.data.tar_members import list_members
from gear_dist.data.tar_samples import READ_SUFFIXES, group_samples
from gear_dist.errors import DataError
from gear_dist.storage.base import MissingObjectError, Storage
from gear_dist.storage.checksums import crc64nvme_hex

_MARK = "\ufeff"
"""The byte-order mark that Windows' editors write before a text."""

Span = tuple[int, int]
"""Offset and size of a member's data in its tar."""


class LooseShard(ShardInfo):
    """A webdataset tar that no manifest of ours describes; its name is its object key."""

    __slots__ = ()

    @property
    def key(self) -> str:
        """The shard's object key."""
        return self.name


class UnreadableSampleError(ValueError):
    """A sample whose image, label or captions cannot be read; the message says why."""


class Sample(NamedTuple):
    """One sample of a shard, undecoded."""

    key: str
    image: bytes
    class_index: int
    """-1: none."""
    captions: tuple[str, ...]
    attributes: dict[str, int]


class TypedCaption(NamedTuple):
    """A caption and what kind of text it is, such as tag, short, medium or long."""

    kind: str
    text: str


class Shard(NamedTuple):
    """A shard's bytes, and where in them its samples are; a row is parsed when it is asked for."""

    data: bytes
    keys: list[str]
    parts: list[dict[str, Span]]
    """Members of each sample by suffix; each has an image."""
    twice: dict[int, str]
    """A member by row, of samples that hold two under one name."""
    num_left_out: int = 0
    """Samples without an image that is read here."""

    def image(self, row: int) -> bytes:
        """The encoded image; UnreadableSampleError where the sample has two of a kind."""
        if row in self.twice:
            raise UnreadableSampleError(f"it has two members of one name: {self.twice[row]}")
        parts = self.parts[row]
        return self._read(next(parts[suffix] for suffix in READ_SUFFIXES if suffix in parts))

    def class_index(self, row: int) -> int:
        """The class; -1: none. UnreadableSampleError where it is not a number."""
        if "cls" not in self.parts[row]:
            return -1
        text = self._read(self.parts[row]["cls"])
        try:
            return int(text.decode("utf-8-sig"))
        except ValueError:
            raise UnreadableSampleError(f"its class {text[:20]!r} is not a number") from None

    def captions(self, row: int) -> tuple[str, ...]:
        """All captions: `captions` or `caption` of the JSON member, else the text member.

        Raises:
            UnreadableSampleError: no UTF-8, broken JSON.
        """
        parts = self.parts[row]
        node = self._json(row) if "json" in parts else {}
        found = node.get("captions") or node.get("caption")
        if found is None and "txt" in parts:
            try:
                found = self._read(parts["txt"]).decode("utf-8-sig")
            except UnicodeDecodeError:
                raise UnreadableSampleError("its caption is not UTF-8") from None
        return tuple(text for text in _listed_texts(found) if text)

    def typed_captions(self, row: int) -> tuple[TypedCaption, ...]:
        """All captions with their types: `caption_types`, one for each of `captions`, or
        `caption_type` of the JSON member; an empty type where it tells none.

        Raises:
            UnreadableSampleError: see `captions`; or another number of types than of captions.
        """
        node = self._json(row) if "json" in self.parts[row] else {}
        types = _listed_texts(node.get("caption_types") or node.get("caption_type"))
        if not node.get("caption_types"):
            kind = types[0] if types else ""
            return tuple(TypedCaption(kind, text) for text in self.captions(row))
        texts = _listed_texts(node.get("captions"))
        if len(types) != len(texts):
            raise UnreadableSampleError(f"it has {len(texts)} captions and {len(types)} types")
        pairs = zip(types, texts, strict=True)
        return tuple(TypedCaption(kind, text) for kind, text in pairs if text)

    def sample(self, row: int) -> Sample:
        """Everything that is known of a sample.

        Raises:
            UnreadableSampleError: an unreadable class, caption or JSON member.
        """
        node = self._json(row) if "json" in self.parts[row] else {}
        attributes = {name: value for name, value in node.items() if type(value) is int}
        captions = self.captions(row)
        return Sample(self.keys[row], self.image(row), self.class_index(row), captions, attributes)

    def _json(self, row: int) -> dict[str, Any]:
        try:
            node = json.loads(self._read(self.parts[row]["json"]))
        except ValueError:
            raise UnreadableSampleError("its JSON member is broken") from None
        if not isinstance(node, dict):
            raise UnreadableSampleError("its JSON member is not an object")
        return node

    def _read(self, span: Span) -> bytes:
        return self.data[span[0] : span[0] + span[1]]


def _listed_texts(found: Any) -> list[str]:
    """Texts of a list, or the one that is there; of what is no text, nothing."""
    listed = found if isinstance(found, list) else [found]
    return [text.removeprefix(_MARK).strip() for text in listed if isinstance(text, str)]


def read_shard(storage: Storage, info: ShardInfo) -> Shard:
    """Fetch a shard and find its samples.

    Raises:
        DataError: missing, or its bytes, sample count or members differ from the manifest's.
    """
    try:
        data = storage.read(info.key)
    except MissingObjectError:
        refuse_shard(storage, info, "it is missing")
    problem = find_damage(info, data)
    if problem:
        refuse_shard(storage, info, problem)
    return parse_shard(storage, info, data)


def find_damage(info: ShardInfo, data: bytes) -> str:
    """How a shard's bytes differ from the manifest's record of them; empty: they do not."""
    if len(data) != info.bytes:
        return f"{len(data)} bytes instead of {info.bytes}"
    right = crc64nvme_hex(data) == info.crc64nvme
    return "" if right else "its checksum differs from the manifest's"


def parse_shard(storage: Storage, info: ShardInfo, data: bytes) -> Shard:
    """Find the samples in the bytes of a shard whose checksum has been compared.

    Raises:
        DataError: not a tar, or another number of samples than the manifest's.
    """
    try:
        shard = index_samples(data, trusted=True)
    except ValueError as error:
        refuse_shard(storage, info, str(error))
    if len(shard.keys) != info.samples:
        refuse_shard(storage, info, f"{len(shard.keys)} samples instead of {info.samples}")
    return shard


def index_samples(data: bytes, *, trusted: bool = False) -> Shard:
    """Group a tar's members into samples; what has no image is no sample.

    Raises:
        ValueError: as `list_members`.
    """
    samples = list(group_samples(list_members(data, trusted=trusted)))
    found = [sample for sample in samples if sample.picture(READ_SUFFIXES)]
    parts = [
        {suffix: (member.offset, member.size) for suffix, member in sample.members.items()}
        for sample in found
    ]
    twice = {row: sample.twice[0].name for row, sample in enumerate(found) if sample.twice}
    return Shard(data, [sample.key for sample in found], parts, twice, len(samples) - len(found))


def refuse_shard(storage: Storage, info: ShardInfo, why: str) -> NoReturn:
    """Raise the DataError for a shard that is not what the manifest says."""
    fix = "make the corpus again with `gear-dist shard SOURCE DESTINATION --overwrite`"
    if isinstance(info, LooseShard):
        fix = "restore it, or remove ~/.cache/gear-dist to have it counted again"
    raise DataError(f"{storage.address}/{info.key}: corrupt shard: {why}; {fix}") from None
