"""A run's or an imported model's networks for others: safetensors, or the public .pt layouts."""

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open

from gear_dist.config.schema import RunConfig
from gear_dist.errors import DataError
from gear_dist.inference.model_folder import (
    CARD_NAME,
    ModelFolder,
    create_model_folder,
    write_model_config,
)
from gear_dist.inference.text_weights import METADATA_KEY
from gear_dist.inference.weights import check_fit, read_weights, write_weights
from gear_dist.interop.model_card import export_card
from gear_dist.runs.classes import class_names, write_class_names
from gear_dist.runs.licenses import training_licenses
from gear_dist.runs.run_folder import RunFolder
from gear_dist.storage.atomic import atomic_file, write_text

Layout = Literal["gear", "public"]

# Keys under which readers of the family look for the state. All hold the same tensors, which a
# file stores once.
_PUBLIC_KEYS = {
    "vq": ("model", "vq", "vq_ema"),
    "lfq": ("state_dict", "vq", "vq_ema"),
    "ibq": ("state_dict", "vq", "vq_ema"),
    "generator": ("model", "ema"),
}
PUBLIC_NETWORKS = ("tokenizer", "generator")


def export_model(model: ModelFolder, out: Path, layout: Layout = "gear") -> list[Path]:
    """Write a model folder; returns its files of weights.

    Args:
        out: the folder, new or empty.
        layout: gear: safetensors of every network; public: tokenizer.pt and generator.pt with the
            wrappings that the public code reads.

    Raises:
        DataError: there are no weights yet, or they do not fit. ConfigError: `out` is taken.
    """
    wanted = PUBLIC_NETWORKS if layout == "public" else tuple(model.weights)
    files = {name: file for name, file in model.weights.items() if name in wanted}
    if not files:
        raise DataError(f"{model.path}: has no weights to export; has the run saved any yet?")
    create_model_folder(out)
    step, written = "", []
    for name, file in files.items():
        state, metadata = read_weights(file), _metadata(file)
        step = metadata.get("step", step)
        check_fit(name, state, model.config, str(file))
        if layout == "public":
            content = dict.fromkeys(_public_keys(name, model), state)
            content |= _public_options(name, model.config, step)
            written.append(_write_public(out / f"{name}.pt", content))
        else:
            written.append(out / file.name)
            kept = {key: metadata[key] for key in ("step", METADATA_KEY) if key in metadata}
            write_weights(written[-1], state, kept)
    folder = RunFolder(model.path)
    card = export_card(
        out.name,
        model.config,
        list(files),
        step=step,
        data=folder.read_environment().get("data", {}),
        evaluation=folder.read_evaluation(),
        licenses=training_licenses(folder.read_environment()),
    )
    write_text(out / CARD_NAME, card)
    write_class_names(out, class_names(model.path))
    write_model_config(out, model.config, files)
    return written


def _public_keys(network: str, model: ModelFolder) -> tuple[str, ...]:
    return _PUBLIC_KEYS[model.config.tokenizer.quantizer if network == "tokenizer" else network]


def _public_options(network: str, config: RunConfig, step: str) -> dict[str, Any]:
    """What the public file of a text-to-image generator has beside its weights."""
    if network != "generator" or config.generator.condition != "text":
        return {}
    args = {
        "text_attn": config.generator.text_mask,
        "text_encoder": config.text_encoder.path,
        "text_max_len": config.text_encoder.max_tokens,
    }
    return {"args": args, "steps": int(step or 0)}


def _write_public(path: Path, content: dict[str, Any]) -> Path:
    with atomic_file(path) as stream:
        torch.save(content, stream)
    return path


def _metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return opened.metadata() or {}
