"""Classes by the names that a run's corpus has for them. No torch."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from gear_dist.errors import ConfigError, DataError
from gear_dist.runs.run_folder import RunFolder
from gear_dist.storage.atomic import write_file
from gear_dist.storage.json_files import parse_json, to_json

CLASSES_NAME = "classes.json"
"""In a model folder: the names in the order of their indices."""

SHOWN_NAMES = 5
"""Names in a message; a corpus may have thousands."""


def class_names(folder: Path) -> list[str]:
    """Names of the classes, where a run recorded its corpus or a model was exported with them.

    Raises:
        DataError: a model folder's list of them is damaged.
    """
    path = folder / CLASSES_NAME
    try:
        found = parse_json(path.read_bytes())
    except FileNotFoundError:
        return list(RunFolder(folder).read_environment().get("data", {}).get("classes", []))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable list of names: {error}") from None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise DataError(f"{path}: is no list of names: restore it, or remove it to go without")
    return found


def write_class_names(folder: Path, names: Sequence[str]) -> None:
    """Write a model folder's list of names, where there are any."""
    if names:
        write_file(folder / CLASSES_NAME, (to_json(list(names), indent=1) + "\n").encode())


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
