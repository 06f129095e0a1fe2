"""RawSample and BadSample: samples between source and shard, and why one is rejected."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gear_dist.data.origins import SampleOrigin

MAX_SIDECAR_BYTES = 1 << 20
"""Captions and attributes of one sample; more is no caption but an attack or a mistake."""


MAX_SAMPLE_BYTES = 256 << 20
"""Files and members that are longer are not even read."""


NOT_FETCHED = "not-fetched"
"""The kind of a row whose image the web did not give."""


class BadSampleError(ValueError):
    """A sample that must not go into a shard.

    Attributes:
        kind: what is wrong with it in one word, the key of its policy.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class BadSample(NamedTuple):
    """A line of the quarantine report."""

    name: str
    kind: str
    reason: str


class RawSample(NamedTuple):
    """What a source knows of a sample; nothing of it is checked."""

    name: str
    """Where it is in the source, for people."""
    image: bytes
    suffix: str
    """What the source calls the format, lower case; empty: it does not say."""
    class_index: int = -1
    captions: tuple[bytes | str, ...] = ()
    attributes: dict[str, int] = {}  # noqa: RUF012 - never changed
    problem: BadSampleError | None = None
    """Set where the source cannot give the sample."""
    odd: dict[str, str] = {}  # noqa: RUF012 - never changed
    """What its source finds odd, for the policies to decide: a reason by kind."""
    caption_types: tuple[str, ...] = ()
    """One for each caption; empty: the source tells none."""
    origin: SampleOrigin = SampleOrigin()


def further_images(names: Sequence[str]) -> dict[str, str]:
    """`RawSample.odd` of a sample that has other images beside its picture."""
    return {"extra-image": f"it has further images: {', '.join(names)}"} if names else {}


class Sidecar(NamedTuple):
    """A sample's JSON."""

    captions: tuple[str, ...]
    attributes: dict[str, int]
    caption_types: tuple[str, ...] = ()
    """One for each caption, or one for all of them; empty: none is told."""
    origin: SampleOrigin = SampleOrigin()


def common_reasons(reasons: Mapping[str, int]) -> str:
    """The three most common ones with their counts, for people."""
    most = Counter(reasons).most_common(3)
    return ", ".join(f"{reason}: {count:,}" for reason, count in most)


_TYPE_FIELDS = ("caption_types", "caption_type")
_ORIGIN_FIELDS = {
    "split": ("split", "subset"),
    "license": ("license", "licence"),
    "license_url": ("license_url", "licence_url"),
    "attribution": ("attribution",),
}
"""Names of JSON members and of columns, those of SampleOrigin's fields first."""


def parse_sidecar(
    data: bytes, caption_field: str = "caption", *, strict: bool, origins: bool = False
) -> Sidecar:
    """Captions and attributes in a sample's JSON: {"caption": ...} or {"captions": [...]}.

    Args:
        data: the JSON.
        caption_field: which member is the caption.
        strict: every other member must be an integer >= 0, an attribute. Else the others are
            attributes only where all of them are such integers: the metadata that downloaders
            write beside their images is none.
        origins: whether types of captions, licence, attribution and part of the source are read,
            and are no attributes.

    Raises:
        BadSampleError: not JSON, not of that form.
    """
    try:
        node: Any = json.loads(data)
    except (ValueError, RecursionError):
        raise BadSampleError("sidecar", "its attributes are not JSON") from None
    if not isinstance(node, dict):
        raise BadSampleError("sidecar", "its attributes are not an object of integers >= 0")
    captions = tuple(_captions(node, caption_field))
    attributes = {k: v for k, v in node.items() if k not in (caption_field, "captions")}
    found = Sidecar(captions, {})
    if origins:
        types = listed_texts(next((node[name] for name in _TYPE_FIELDS if node.get(name)), None))
        found = found._replace(caption_types=types, origin=read_origin(node))
        own = {name for names in _ORIGIN_FIELDS.values() for name in names}.union(_TYPE_FIELDS)
        attributes = {k: v for k, v in attributes.items() if k not in own or type(v) is int}
    if all(type(value) is int and 0 <= value < 1 << 31 for value in attributes.values()):
        return found._replace(attributes=attributes)
    if strict:
        raise BadSampleError("sidecar", "its attributes are not an object of integers >= 0")
    return found


def read_origin(node: Mapping[str, Any]) -> SampleOrigin:
    """The origin that a JSON object or a row tells; what is no text counts as nothing."""
    texts = {
        field: next((text for name in names if (text := _plain_text(node.get(name)))), "")
        for field, names in _ORIGIN_FIELDS.items()
    }
    return SampleOrigin(**texts)


def origin_columns(names: Sequence[str]) -> dict[str, str]:
    """The columns of a table that tell origins, by field of SampleOrigin, and `caption_type`."""
    by_name = {name.casefold(): name for name in reversed(names)}
    wanted = {"caption_type": tuple(reversed(_TYPE_FIELDS)), **_ORIGIN_FIELDS}
    found = {
        field: next((by_name[name] for name in choices if name in by_name), "")
        for field, choices in wanted.items()
    }
    return {field: name for field, name in found.items() if name}


def listed_texts(value: Any) -> tuple[str, ...]:
    """Texts of a list, or the one that is there; what is no text is an empty one."""
    listed = value if isinstance(value, list | tuple) else [value] if value else []
    return tuple(map(_plain_text, listed))


def match_types(types: tuple[str, ...], num_captions: int) -> tuple[str, ...]:
    """A type for each caption; one type is that of all.

    Raises:
        BadSampleError: another number of types than of captions.
    """
    if len(types) == 1:
        return types * num_captions
    if types and len(types) != num_captions:
        raise BadSampleError("sidecar", f"it has {num_captions} captions and {len(types)} types")
    return types


def _plain_text(value: Any) -> str:
    """One line of text that has UTF-8: surrogates from JSON have none."""
    if not isinstance(value, str):
        return ""
    return " ".join(value.encode(errors="replace").decode().split())


def _captions(node: dict[str, Any], field: str) -> list[str]:
    values = [node.get(field)] if isinstance(node.get(field), str) else node.get(field) or []
    more = node.get("captions") or []
    found = [*(values if isinstance(values, list) else [None]), *(more if more != values else [])]
    if not all(isinstance(caption, str) for caption in found):
        raise BadSampleError("bad-caption", "its captions are not text")
    return found
