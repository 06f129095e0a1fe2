"""The training system, and trained pairs in Python: `gear_dist.load`.

Importing it is cheap: torch comes with the first use of `load` or `Pair`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gear_dist.api import Images, Pair, load

__all__ = ["Images", "Pair", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'gear_dist' has no attribute {name!r}")
    from gear_dist import api

    return getattr(api, name)
