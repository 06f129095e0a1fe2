"""Weights files of single networks: safetensors under the public checkpoints' key names."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from gear_dist.checkpoints.safetensors_writer import write_tensors
from gear_dist.config.schema import RunConfig
from gear_dist.errors import DataError
from gear_dist.models.discriminator.patchgan import PatchDiscriminator
from gear_dist.models.generator import build_aligned_generator, build_generator, find_teacher_widths
from gear_dist.models.tokenizers import build_tokenizer
from gear_dist.storage.atomic import atomic_file

NetworkStates = dict[str, dict[str, Tensor]]
"""Whole networks by name, as the engines have them, on the CPU; see `split_states`."""

T = TypeVar("T")
PROJECTORS_PREFIX = "projectors."
LECAM_PREFIX = "lecam."
"""Of the discriminator's engine, and no part of what is published."""
# Published name, the engine's network that has it, and where in that.
_PARTS = (
    ("tokenizer", "tokenizer", ""),
    ("discriminator", "discriminator", "discriminator."),
    ("generator", "generator", "generator."),
    ("projectors", "generator", PROJECTORS_PREFIX),
)
SHOWN = 4


def split_states(states: Mapping[str, Mapping[str, T]]) -> dict[str, dict[str, T]]:
    """The engines' networks as published ones: the generator apart from its projectors.

    Args:
        states: by network, tensors by name, or whatever belongs to each.
    """
    published = {}
    for name, network, prefix in _PARTS:
        state = states.get(network, {})
        found = {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
        if found:
            published[name] = found
    return published


def join_states(published: NetworkStates) -> NetworkStates:
    """The inverse of `split_states`."""
    states: NetworkStates = {}
    for name, network, prefix in _PARTS:
        state = {prefix + key: value for key, value in published.get(name, {}).items()}
        if state:
            states.setdefault(network, {}).update(state)
    return states


def write_weights(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write one network atomically as safetensors, a tensor at a time.

    Args:
        metadata: values that are no text are written as JSON.

    Raises:
        StorageError: the disk is full or refuses.
    """
    with atomic_file(path) as stream:
        write_tensors(stream, state.items(), metadata_texts(metadata))


def metadata_texts(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Metadata as weights files have it: values that are no text as JSON."""
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}


def save_run_weights(folder: Path, states: NetworkStates, metadata: Mapping[str, Any]) -> None:
    """Write every network of a run; the metadata is that of each, see `write_weights`."""
    for name, state in split_states(states).items():
        write_weights(folder / f"{name}.safetensors", state, metadata)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such weights; a run writes them at the end of a stage, when it is stopped "
            "and with its grids (log.grid_every_steps)"
        ) from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not readable weights: {error}") from None


def build_empty(network: str, config: RunConfig, teacher_widths: Sequence[int] = ()) -> nn.Module:
    """A published network of a configuration without memory, for its keys and shapes.

    Args:
        teacher_widths: what projectors project to; no setting says it.
    """
    with torch.device("meta"):
        if network == "tokenizer":
            return build_tokenizer(config.tokenizer)
        if network == "generator":
            return build_generator(config)
        if network == "projectors":
            generator = build_generator(config)
            return build_aligned_generator(generator, config.alignment, teacher_widths).projectors
        assert network == "discriminator", network
        return PatchDiscriminator(config.discriminator)


def check_fit(network: str, state: Mapping[str, Tensor], config: RunConfig, where: str) -> None:
    """Refuse a published network's state of other keys or shapes than the configuration's, or with
    values that are no numbers. Reads every tensor.

    Raises:
        DataError: names the first of those that are missing, not expected, of another shape, or not
            finite.
    """
    teacher_widths = find_teacher_widths(state) if network == "projectors" else ()
    wanted = build_empty(network, config, teacher_widths).state_dict()
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    shapes = [
        f"{key} is {tuple(state[key].shape)} and should be {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    kinds = (("missing", missing), ("not expected", unexpected), ("of another shape", shapes))
    problems = [f"{len(keys)} {kind} ({_first(keys)})" for kind, keys in kinds if keys]
    if problems:
        raise DataError(
            f"{where}: does not fit the {network} of its configuration: {'; '.join(problems)}"
        )
    whole = [
        key
        for key, tensor in wanted.items()
        if tensor.is_floating_point() and not state[key].is_floating_point()
    ]
    if whole:
        raise DataError(
            f"{where}: {len(whole)} tensors of its {network} are whole numbers ({_first(whole)}), "
            "as of a quantised model: use the floating-point weights"
        )
    broken = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if broken:
        raise DataError(
            f"{where}: {len(broken)} tensors of its {network} hold NaN or infinity "
            f"({_first(broken)}): training diverged or the file is damaged; use an earlier "
            f"checkpoint"
        )


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")
