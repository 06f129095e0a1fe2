"""RawSample and BadSample: samples between source and shard, and why one is rejected."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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


def further_images(names: Sequence[str]) -> dict[str, str]:
    """`RawSample.odd` of a sample that has other images beside its picture."""
    return {"extra-image": f"it has further images: {', '.join(names)}"} if names else {}


class Sidecar(NamedTuple):
    """A sample's JSON."""

    captions: tuple[str, ...]
    attributes: dict[str, int]


def common_reasons(reasons: Mapping[str, int]) -> str:
    """The three most common ones with their counts, for people."""
    most = Counter(reasons).most_common(3)
    return ", ".join(f"{reason}: {count:,}" for reason, count in most)


def parse_sidecar(data: bytes, caption_field: str = "caption", *, strict: bool) -> Sidecar:
    """Captions and attributes in a sample's JSON: {"caption": ...} or {"captions": [...]}.

    Args:
        data: the JSON.
        caption_field: which member is the caption.
        strict: every other member must be an integer >= 0, an attribute. Else the others are
            attributes only where all of them are such integers: the metadata that downloaders
            write beside their images is none.

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
    if all(type(value) is int and 0 <= value < 1 << 31 for value in attributes.values()):
        return Sidecar(captions, attributes)
    if strict:
        raise BadSampleError("sidecar", "its attributes are not an object of integers >= 0")
    return Sidecar(captions, {})


def _captions(node: dict[str, Any], field: str) -> list[str]:
    values = [node.get(field)] if isinstance(node.get(field), str) else node.get(field) or []
    more = node.get("captions") or []
    found = [*(values if isinstance(values, list) else [None]), *(more if more != values else [])]
    if not all(isinstance(caption, str) for caption in found):
        raise BadSampleError("bad-caption", "its captions are not text")
    return found
