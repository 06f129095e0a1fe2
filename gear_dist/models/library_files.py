"""Frozen models of the transformers library from a local folder or the hub.

Only safetensors are read. The library's own settings act as everywhere: HF_HUB_OFFLINE, HF_HOME,
HF_TOKEN. It fills in at random what a file lacks, and only warns; here that is an error.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from gear_dist.errors import ConfigError
from gear_dist.formatting import first_line
from gear_dist.storage.paths import expand_user, local_path

_SHOWN = 3


class UnreachableError(ConfigError):
    """Neither folder nor hub has the files."""


def read_model(model_class: Any, source: str, path: str, setting: str, **options: Any) -> Any:
    """A model with its weights, on the CPU, in evaluation mode.

    Args:
        model_class: of the library.
        source: of `find_source`.
        path: as the user gave it, for errors.
        setting: the section's name, for errors.
        options: of `from_pretrained`.

    Raises:
        ConfigError: weights are missing, or of other shapes.
    """
    options = {"dtype": torch.float32} | options
    model, found = model_class.from_pretrained(
        source,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **options,
    )
    lacking = sorted([*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])])
    if lacking:
        names = ", ".join(lacking[:_SHOWN]) + (", ..." if len(lacking) > _SHOWN else "")
        raise ConfigError(
            f"{setting}.path={path} lacks {len(lacking)} weights of its model, or has them "
            f"in other shapes ({names}): use a whole checkpoint in the transformers library's "
            "layout"
        )
    return model


def find_source(path: str, setting: str, example: str) -> str:
    """A local folder, or a hub name as it is given.

    Raises:
        ConfigError: it looks like a folder, and there is none.
    """
    folder = expand_user(local_path(path, f"{setting}.path"))
    if folder.is_dir():
        return str(folder)
    if path.startswith((".", "/", "~")) or folder.exists():
        raise ConfigError(
            f"{setting}.path={path}: no such folder; give a folder with config.json and "
            f"model.safetensors, or a hub name such as {example}"
        )
    return path


@contextmanager
def explained(path: str, setting: str, otherwise: str) -> Iterator[None]:
    """Turn what the library raises into one line that names the setting and the fix.

    Args:
        otherwise: what works without the files, such as `teacher.name=convnet`.
    """
    try:
        yield
    except OSError as error:
        raise UnreachableError(
            f"{setting}.path={path}: weights are not reachable ({first_line(error)}); give "
            "a local folder with config.json and model.safetensors, or connect to the hub (unset "
            f"HF_HUB_OFFLINE), or use {otherwise}"
        ) from None
    except (ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise ConfigError(
            f"{setting}.path={path}: config.json or weights are damaged "
            f"({first_line(error)}): fetch them again"
        ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, and no report of what a checkpoint has beside the wanted part."""
    from transformers.utils import logging

    shows_progress, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_progress:
            logging.enable_progress_bar()
