"""Checkpoint files of others, read without running any code that they may hold."""

import argparse
import contextlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from gear_dist.errors import DataError
from gear_dist.formatting import first_line
from gear_dist.storage.file_kinds import not_a_checkpoint

ALLOWED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [argparse.Namespace]
"""Training scripts store their options as one; it is a plain container of attributes."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The file's top-level dictionary; tensors are mapped from the file where it allows that.

    Raises:
        DataError: it is missing, damaged, no dictionary, or a pickle that needs more than tensors
            and plain values.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such checkpoint file")
    _refuse_other_kinds(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        with safe_globals(ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's are for programmers
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        raise DataError(f"{path}: {_refusal(path, error)}") from None
    except Exception as error:  # torch's reader meets whatever the bytes are, and ends in any way
        raise DataError(f"{path}: not a readable checkpoint: {first_line(error)}") from None
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors")
    return dict(content)


def _refuse_other_kinds(path: Path) -> None:
    try:
        kind = not_a_checkpoint(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if kind:
        raise DataError(f"{path}: {kind}")


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not readable safetensors: {first_line(error)}") from None


def _refusal(path: Path, error: Exception) -> str:
    needs = _needed_globals(path, error)
    if not needs:
        # torch's own words advise to load it with the power to run code.
        return "not a readable checkpoint"
    return (
        f"this pickle needs {', '.join(needs)} to load, and loading those could run code: refused. "
        "Where you trust the file, save its tensors alone, "
        "torch.save({'state_dict': STATE}, FILE), and import that"
    )


def _needed_globals(path: Path, error: Exception) -> list[str]:
    """Names that the pickle would import, beyond those that weights may."""
    if zipfile.is_zipfile(path):
        with safe_globals(ALLOWED), contextlib.suppress(Exception):  # a damaged pickle
            return sorted(get_unsafe_globals_in_checkpoint(path))
        return []
    return re.findall(r"GLOBAL (\S+)", str(error))[:1]
