"""Spatial normalisation of teacher features: how much of the image's mean feature is removed."""

from typing import Literal

from torch import Tensor

Normalisation = Literal["none", "demean", "zscore"]


def normalise_features(
    features: Tensor, mode: Normalisation, alpha: float = 0.6, eps: float = 1e-6
) -> Tensor:
    """Normalise each channel over the positions of its own image.

    demean: d = z - alpha mean(z); zscore: d / (std(d) + eps), unbiased over the L positions.
    Source: arXiv 2512.10794.

    Args:
        features: (B, L, width), floating.
        mode: which normalisation.
        alpha: share of the mean that is removed.
        eps: keeps a constant channel finite.

    Raises:
        ValueError: an unknown mode.
    """
    if mode == "none":
        return features
    if mode not in ("demean", "zscore"):
        raise ValueError(f"normalisation {mode!r} is not known: use none, demean or zscore")
    centred = features - alpha * features.mean(dim=1, keepdim=True)
    if mode == "demean":
        return centred
    return centred / (centred.std(dim=1, keepdim=True) + eps)
