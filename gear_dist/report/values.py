"""Values of settings, facts and results as text."""

from collections.abc import Mapping
from typing import Any

from gear_dist.config.compare import flatten
from gear_dist.formatting import format_bytes
from gear_dist.redaction import redact_text
from gear_dist.report.numbers import format_value

_LONG_LIST = 16


def show_value(value: Any) -> str:
    """A value as text, without the user part of addresses."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return format_value(value)
    if isinstance(value, list | tuple):
        shown = ", ".join(map(show_value, value[:_LONG_LIST])) or "none"
        return shown if len(value) <= _LONG_LIST else f"{shown}, ... ({len(value)} in all)"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {show_value(item)}" for key, item in with_units(value).items())
    return redact_text(str(value)) or "(empty)"


def with_units(values: Mapping[str, Any]) -> dict[str, Any]:
    """Names that end in _bytes become sizes that a reader takes in."""
    return {
        name.removesuffix("_bytes"): format_bytes(value)
        if name.endswith("_bytes") and isinstance(value, int | float)
        else value
        for name, value in flatten(values).items()
    }
