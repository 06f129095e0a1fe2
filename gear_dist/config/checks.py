"""Bounds of settings: each raises a ConfigError that names setting, value and fix."""

from typing import Any

from gear_dist.config.colour import parse_colour
from gear_dist.errors import ConfigError

MAX_WIDTH = 2**20
"""Channels, codes and classes of a network."""
MAX_SIDE = 2**16
"""Pixels of a side."""
MAX_LAYERS = 10_000
MAX_THREADS = 4096


def require(ok: bool, message: str) -> None:
    """Raise ConfigError with the message unless `ok`."""
    if not ok:
        raise ConfigError(message)


def require_at_least(section: str, config: Any, low: float, *names: str) -> None:
    """Lower bounds of a section's settings."""
    for name in names:
        value = getattr(config, name)
        require(value >= low, f"{section}.{name}={value} is too small: use at least {low}")


def require_at_most(section: str, config: Any, high: float, *names: str) -> None:
    """Upper bounds far beyond any use: a typing error must not fill memory or run for ever."""
    for name in names:
        value = getattr(config, name)
        require(value <= high, f"{section}.{name}={value} is too large: use at most {high}")


def require_fraction(section: str, config: Any, *names: str) -> None:
    """Settings in [0, 1)."""
    for name in names:
        value = getattr(config, name)
        require(0 <= value < 1, f"{section}.{name}={value} is out of range: use 0 <= value < 1")


def require_colour(name: str, text: str) -> None:
    """A setting that is a colour."""
    try:
        parse_colour(text)
    except ValueError as error:
        raise ConfigError(f"{name}={text}: {error}") from None
