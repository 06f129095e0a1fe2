"""Classes by the names that a run's corpus has for them. No torch."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from gear_dist.errors import ConfigError
from gear_dist.runs.run_folder import RunFolder

SHOWN_NAMES = 5
"""Names in a message; a corpus may have thousands."""


def class_names(folder: Path) -> list[str]:
    """Names of the classes, where a run recorded its corpus; none for other folders."""
    return list(RunFolder(folder).read_environment().get("data", {}).get("classes", []))


def class_index(word: str, num_classes: int, names: Sequence[str], option: str) -> int:
    """The index of a class by name, or by index; a name wins over an index that looks like it.

    Args:
        option: what the word was given for, for the message.

    Raises:
        ConfigError: the generator has no such class; names the nearest.
    """
    index = names.index(word) if word in names else -1
    if index < 0 and re.fullmatch(r"[0-9]{1,9}", word):
        index = int(word)
    if not 0 <= index < num_classes:
        allowed = f"0 .. {num_classes - 1}"
        if names:
            near = difflib.get_close_matches(word, names, SHOWN_NAMES)
            shown = ", ".join(near or list(names)[:SHOWN_NAMES])
            allowed += ", or a name, the nearest: " if near else ", or a name, such as "
            allowed += f"{shown} (one with commas in double quotes)"
        raise ConfigError(f"{option} {word}: no such class; use {allowed}")
    return index
