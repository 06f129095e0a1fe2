"""The text encoder that a generator was trained with, as its weights file tells it."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from gear_dist.errors import DataError
from gear_dist.inference.model_folder import ModelFolder
from gear_dist.models.text_encoders import load_text_encoder
from gear_dist.models.text_encoders.base import TextEncoder
from gear_dist.models.text_encoders.fingerprint import (
    Fingerprint,
    check_fingerprint,
    take_fingerprint,
)
from gear_dist.storage.json_files import build_record, parse_json

METADATA_KEY = "text_encoder"


def read_encoder_fingerprint(weights: Path) -> Any:
    """What a generator's weights file says of its text encoder; None: nothing."""
    with safe_open(weights, framework="pt") as file:
        text = (file.metadata() or {}).get(METADATA_KEY)
    try:
        return parse_json(text) if text else None
    except ValueError:
        raise DataError(f"{weights}: its metadata {METADATA_KEY} is damaged") from None


def load_checked_encoder(model: ModelFolder, device: torch.device) -> TextEncoder:
    """The text encoder of a model folder's generator, compared with that of its training.

    Raises:
        ConfigError: it cannot be had, does not fit, or is another one.
    """
    config, weights = model.config, model.weights["generator"]
    width = config.generator.text_width
    encoder = load_text_encoder(config.text_encoder, width=width, device=device)
    found = take_fingerprint(encoder)._asdict()
    check_same_encoder(read_encoder_fingerprint(weights), found, str(weights))
    return encoder


def check_same_encoder(stored: Any, found: Any, where: str) -> None:
    """Refuse an encoder that is not the one of training.

    Args:
        stored: a `Fingerprint` of training as plain values; None: not known, as of public weights.
        found: likewise of the encoder that is loaded now.
        where: the weights, for messages.

    Raises:
        ConfigError: another encoder. DataError: what is stored is damaged.
    """
    if stored is None:
        return
    try:
        theirs = build_record(Fingerprint, stored)
    except ValueError as error:
        raise DataError(f"{where}: its record of the text encoder is damaged: {error}") from None
    check_fingerprint(theirs, Fingerprint(**found), where)
