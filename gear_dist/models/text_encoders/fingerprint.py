"""What a text encoder makes of fixed prompts: tells whether two of them are the same.

A hash of the features would change with the processor, the number format and the library's
kernels, none of which matter to a generator. So token numbers, which are exact, are hashed, and
features are kept as a few numbers that are compared with a tolerance: bf16 moves them by about a
hundredth of their size, another layer, model or template by all of it.
"""

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

from gear_dist.errors import ConfigError
from gear_dist.models.text_encoders.base import TextEncoder

GOLDEN_PROMPTS = (
    "",
    "A red circle above two blue squares, striped; photo no. 7.",
    "Une café à Zürich, 猫と犬, naïve déjà-vu",
)
NUM_VALUES = 16
TOLERANCE = 0.05
"""Of the root mean square of the stored values."""


class Fingerprint(NamedTuple):
    """Of an encoder with its settings; plain values, as checkpoints and weights have them."""

    tokens: str
    """Hex SHA-256 of the golden prompts' token numbers."""
    width: int
    values: tuple[float, ...]
    """Sums of the prompts' features with fixed weights."""


def take_fingerprint(encoder: TextEncoder) -> Fingerprint:
    """Encode the golden prompts."""
    tokens = encoder.tokenize(GOLDEN_PROMPTS)
    digest = hashlib.sha256(repr(tokens).encode()).hexdigest()
    with torch.no_grad():
        features = [item.features_TF.float().cpu() for item in encoder.encode(tokens)]
    values = sum(_summary(features_TF) for features_TF in features)
    assert isinstance(values, Tensor)
    return Fingerprint(digest, encoder.width, tuple(round(v, 6) for v in values.tolist()))


def _summary(features_TF: Tensor) -> Tensor:
    """Sums over tokens and features with cosines of several frequencies as weights."""
    length, width = features_TF.shape
    phases = torch.arange(1, NUM_VALUES + 1)[:, None].double()
    per_token = torch.cos(phases * torch.arange(length) * 0.7).float()
    per_feature = torch.cos(phases * torch.arange(width) * 0.9 + phases).float()
    sums = torch.einsum("vt,tf,vf->v", per_token, features_TF, per_feature)
    return sums / (length * width) ** 0.5


def check_fingerprint(stored: Fingerprint, found: Fingerprint, where: str) -> None:
    """Refuse an encoder that is not the one that weights were trained with.

    Args:
        stored: with the weights.
        found: of the encoder that is loaded now.
        where: the weights, for the message.

    Raises:
        ConfigError: says what differs.
    """
    fix = (
        "set the section text_encoder as it was in training (its path and revision, layers, "
        "prompt, max_tokens, padding)"
    )
    if stored.width != found.width:
        raise ConfigError(
            f"text_encoder: gives features of width {found.width}, and {where} was trained with "
            f"width {stored.width}: {fix}"
        )
    if stored.tokens != found.tokens:
        raise ConfigError(
            f"text_encoder: splits the test prompts into other tokens than the one that {where} "
            f"was trained with: {fix}"
        )
    theirs, ours = torch.tensor(stored.values), torch.tensor(found.values)
    scale = theirs.square().mean().sqrt().item()
    error = (theirs - ours).abs().max().item() if len(theirs) == len(ours) else float("inf")
    if not error <= TOLERANCE * scale:
        raise ConfigError(
            f"text_encoder: gives the test prompts other features than the one that {where} was "
            f"trained with (they differ by {error / max(scale, 1e-30):.0%} of their size): {fix}"
        )
