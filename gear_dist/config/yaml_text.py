"""YAML whose values stay the characters that were written: the settings' types say what they mean.

YAML 1.1 makes 8 of 010, 750 of 12:30, 1.1 of 1.10 and False of off, whatever they were meant to be.
"""

from collections.abc import Hashable
from typing import Any

import yaml

_MERGE_TAG = "tag:yaml.org,2002:merge"
_MAX_DEPTH = 50
_MAX_VALUES = 100_000


class _TextLoader(yaml.SafeLoader):
    """Mappings, lists and texts; aliases and `<<` work, nothing is resolved to another type."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                continue
            if key.value in seen:
                problem = f"{key.value} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_TextLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag == _MERGE_TAG]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load_yaml_text(text: str | bytes) -> Any:
    """The content of one document: dictionaries, lists, texts; None where it is empty.

    Raises:
        yaml.YAMLError: not YAML, a name that is there twice, aliases that form a circle, or more
            values than a configuration has.
    """
    try:
        node = yaml.load(text, Loader=_TextLoader)
        _count(node, 0)
    except RecursionError:
        raise yaml.YAMLError(f"nested more than {_MAX_DEPTH} deep") from None
    return node


def _count(node: Any, depth: int, seen: int = 0) -> int:
    """How many values there are, aliases counted wherever they stand."""
    if depth > _MAX_DEPTH:
        raise yaml.YAMLError(f"nested more than {_MAX_DEPTH} deep")
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        seen = _count(child, depth + 1, seen + 1)
        if seen > _MAX_VALUES:
            raise yaml.YAMLError(f"more than {_MAX_VALUES} values")
    return seen
