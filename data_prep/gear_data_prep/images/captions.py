"""Captions as they go into a shard: text, without blank ones."""

import itertools
from collections.abc import Sequence

from gear_data_prep.policies import CONVERT, KEEP
from gear_data_prep.samples import BadSampleError
from gear_dist.data.shard_reader import TypedCaption

MAX_CAPTIONS = 1000


def check_captions(
    captions: Sequence[bytes | str], policies: dict[str, str], types: Sequence[str] = ()
) -> tuple[TypedCaption, ...]:
    """The captions that are not blank, in their order.

    Args:
        captions: of one sample.
        policies: the action by kind.
        types: one for each caption; empty: none is known.

    Raises:
        BadSampleError: not UTF-8, or none at all, where the policies say so.
    """
    if len(captions) > MAX_CAPTIONS:
        raise BadSampleError("bad-caption", f"{len(captions)} captions")
    mend = policies["bad-caption"] == CONVERT
    kinds = itertools.chain(types, itertools.repeat(""))
    typed = (
        TypedCaption(kind, _decode(text, mend)) for text, kind in zip(captions, kinds, strict=False)
    )
    found = tuple(caption for caption in typed if caption.text.strip())
    if not found and policies["no-caption"] != KEEP:
        raise BadSampleError("no-caption", "it has no caption")
    return found


def _decode(caption: bytes | str, mend: bool) -> str:
    try:
        # Text from JSON can hold halves of characters, which have no UTF-8 either.
        data = caption.encode() if isinstance(caption, str) else caption
        return data.decode("utf-8-sig")
    except UnicodeError:
        if not mend:
            raise BadSampleError("bad-caption", "its caption is not UTF-8") from None
    data = caption.encode(errors="replace") if isinstance(caption, str) else caption
    return data.decode("utf-8-sig", errors="replace")
