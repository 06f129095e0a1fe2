"""Frechet distance between Gaussian fits of two sets of features.

The features are the reference classifier's: it ranks runs on one corpus and is comparable with
nothing else. It is not FID, which is defined by Inception's features.
"""

from typing import NamedTuple

import torch
from torch import Tensor

NAME = "Frechet distance in the reference classifier's features (not FID)"


class Gaussian(NamedTuple):
    """Mean (W,) and covariance (W, W), fp64."""

    mean: Tensor
    covariance: Tensor


def fit_gaussian(features: Tensor) -> Gaussian:
    """Mean and unbiased covariance of features (N, W), N >= 2.

    Raises:
        ValueError: fewer than two rows, or features that are not finite.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features must be (N, W) with N >= 2, got {tuple(features.shape)}")
    features = features.double()
    if not features.isfinite().all():
        raise ValueError("features are not finite")
    mean = features.mean(dim=0)
    centred = features - mean
    return Gaussian(mean, centred.T @ centred / (len(features) - 1))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2), never below 0.

    The inner matrix is symmetric, so its root's trace is the sum of the roots of its eigenvalues:
    no root of a general matrix is taken, and singular covariances (fewer samples than features)
    are no special case.
    """
    root = _symmetric_root(a.covariance)
    inner = root @ b.covariance @ root
    eigenvalues = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0)
    gap = (a.mean - b.mean).square().sum()
    spread = a.covariance.trace() + b.covariance.trace() - 2 * eigenvalues.sqrt().sum()
    return max(0.0, (gap + spread).item())


def _symmetric_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
