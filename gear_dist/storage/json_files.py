"""JSON of this project: written strictly, read back with its types. No torch.

What lies on a disk or a store may be damaged or another program's: a record is taken only where
every field is there and of its type.
"""

import json
import math
import numbers
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

Record = TypeVar("Record")
_MAX_DIGITS = 19
"""More than a 64-bit number has."""


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON: numbers that are not finite are null, one-element tensors floats, else text."""
    return json.dumps(_plain_value(value), allow_nan=False, indent=indent)


def _plain_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain_value(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else None


def parse_json(data: bytes | str) -> Any:
    """JSON as `to_json` writes it: numbers that are not finite, or beyond 64 bits, are null.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return json.loads(
            data, parse_constant=lambda _: None, parse_float=_finite, parse_int=_whole
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def build_record(kind: type[Record], node: Any) -> Record:
    """A NamedTuple from an object with its fields.

    Raises:
        ValueError: a field is missing, unknown, or of another type than its annotation.
    """
    if not isinstance(node, dict):
        raise ValueError(f"expected an object, found {type(node).__name__}")
    hints = typing.get_type_hints(kind)
    defaults = getattr(kind, "_field_defaults", {})
    for name in hints:
        if name not in node and name not in defaults:
            raise ValueError(f"{name} is missing")
    for name in node:
        if name not in hints:
            raise ValueError(f"{name} is not known")
    return kind(**{name: _as_type(name, value, hints[name]) for name, value in node.items()})


def _as_type(name: str, value: Any, hint: Any) -> Any:
    """A value as its annotation wants it: lists become tuples, objects NamedTuples."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if hasattr(hint, "_fields"):
        return build_record(hint, value)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _as_type(name, value, inner[0])
    if origin is typing.Literal and value in inner:
        return value
    if origin in (list, tuple) and isinstance(value, list):
        return origin(_as_type(name, item, inner[0]) for item in value)
    if origin is dict and isinstance(value, dict):
        return {key: _as_type(name, item, inner[1]) for key, item in value.items()}
    if hint is float and type(value) is int:
        return value
    if isinstance(hint, type) and type(value) is hint:  # a bool is no int here
        return value
    raise ValueError(f"{name} is {str(value)[:40]!r}, no {getattr(hint, '__name__', hint)}")


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _whole(text: str) -> int | None:
    return int(text) if len(text.lstrip("-")) <= _MAX_DIGITS else None
