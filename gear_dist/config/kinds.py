"""Checks that a value (usually raw text) fits its setting's type. No torch."""

import typing
from typing import Any

from gear_dist.errors import ConfigError

_WORDS = {int: "a whole number", float: "a number", bool: "true or false"}
_BOOLEANS = {"true", "false", "yes", "no", "on", "off", "y", "n", "1", "0"}
MISSING = "???"
"""What OmegaConf would take for no value at all, without a word."""


def check_kind(where: str, key: str, kind: Any, value: Any) -> None:
    """Refuse a value that is not of its setting's type.

    Args:
        where: the file or command line that it is from, for the message.
        key: the setting.
        kind: str, int, float, bool, a Literal or a tuple of these.
        value: texts as they were written, or plain values out of JSON.

    Raises:
        ConfigError: names the setting, the value and what is allowed.
    """
    named = f"{where}: {key}={value}"
    if value == MISSING:
        raise ConfigError(f"{named} is OmegaConf's marker for a missing value: give a value")
    if typing.get_origin(kind) is tuple:
        _check_list(where, key, typing.get_args(kind), value)
    elif isinstance(value, dict | list | tuple):
        raise ConfigError(f"{named} must be a single value")
    elif typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        if str(value) not in map(str, choices):
            raise ConfigError(f"{named}: use one of {', '.join(map(str, choices))}")
    elif kind in _WORDS and not _fits(kind, value):
        raise ConfigError(f"{named} must be {_WORDS[kind]}")


def _check_list(where: str, key: str, kinds: tuple[Any, ...], value: Any) -> None:
    if value == "":
        value = []
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where}: {key}={value} must be a list: use {key}=[{value}]")
    if kinds[-1] is not Ellipsis and len(value) != len(kinds):
        raise ConfigError(f"{where}: {key}={list(value)} must have {len(kinds)} values")
    for item in value:
        if isinstance(item, dict | list | tuple):
            raise ConfigError(f"{where}: {key}={list(value)}: {item} must be a single value")
        check_kind(where, key, kinds[0], item)


def _fits(kind: type, value: Any) -> bool:
    if kind is bool:
        return isinstance(value, bool) or str(value).lower() in _BOOLEANS
    if isinstance(value, bool):
        return False
    if kind is int and not isinstance(value, str):
        return isinstance(value, int)
    try:
        kind(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True
