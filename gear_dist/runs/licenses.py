"""Licences of the images that a run was trained on, as its environment.json has them."""

from collections.abc import Mapping
from typing import Any


def training_licenses(environment: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Licences and numbers of images, the most frequent first; empty: none are stated."""
    order = environment.get("order")
    pairs = order.get("licenses") if isinstance(order, Mapping) else None
    return [
        (str(pair[0]), pair[1])
        for pair in (pairs if isinstance(pairs, list | tuple) else [])
        if isinstance(pair, list | tuple) and len(pair) == 2 and type(pair[1]) is int
    ]
