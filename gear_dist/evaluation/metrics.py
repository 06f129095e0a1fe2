"""Measures over a stream of images: each takes batches, and gives its figures at the end.

Shapes: B images (B, 3, H, W), uint8.
"""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gear_dist.evaluation.classifier import ReferenceClassifier
from gear_dist.evaluation.frechet import Gaussian, fit_gaussian, frechet_distance
from gear_dist.evaluation.image_quality import SSIM_WINDOW, psnr, ssim


class ImageBatch(NamedTuple):
    """Images that are measured, with what is known of them."""

    images: Tensor
    labels: Tensor | None = None
    """(B,) int64, the classes that were asked for or that the originals have; -1: unknown."""
    originals: Tensor | None = None
    """What the images are reconstructions of."""


class Metric(Protocol):
    """One measure, or several that share their work."""

    def update(self, batch: ImageBatch) -> None:
        """Take a batch in."""
        ...

    def compute(self) -> dict[str, float]:
        """The figures of all batches so far, by name; NaN where too little was seen."""
        ...


class ReconstructionQuality:
    """`psnr_db` and `ssim`, means over images; for batches with originals."""

    def __init__(self) -> None:
        self._psnr: list[Tensor] = []
        self._ssim: list[Tensor] = []

    def update(self, batch: ImageBatch) -> None:
        """See `Metric`."""
        assert batch.originals is not None
        self._psnr.append(psnr(batch.originals, batch.images))
        fits = min(batch.images.shape[-2:]) >= SSIM_WINDOW
        unknown = torch.full((len(batch.images),), math.nan)
        self._ssim.append(ssim(batch.originals, batch.images) if fits else unknown)

    def compute(self) -> dict[str, float]:
        """See `Metric`."""
        return {"psnr_db": _mean(self._psnr), "ssim": _mean(self._ssim)}


class ClassifierAgreement:
    """`accuracy`, the share of images whose class the classifier recognises, and, with a
    reference, `frechet`, the distance of its features from the real images'; for labelled batches.
    """

    def __init__(
        self, classifier: ReferenceClassifier, reference: Gaussian | None = None, chunk: int = 256
    ) -> None:
        """
        Args:
            classifier: of the corpus.
            reference: fit of its features of real images; None: no distance.
            chunk: images in a forward pass.
        """
        self._classifier = classifier
        self._reference = reference
        self._chunk = chunk
        self._hits: list[Tensor] = []
        self._features: list[Tensor] = []

    def update(self, batch: ImageBatch) -> None:
        """See `Metric`."""
        assert batch.labels is not None
        classes, features = self._classifier.predict(batch.images, self._chunk)
        self._hits.append((classes == batch.labels)[batch.labels >= 0].double())
        if self._reference is not None:
            self._features.append(features)

    def compute(self) -> dict[str, float]:
        """See `Metric`."""
        distance = math.nan
        count = sum(map(len, self._features))
        if self._reference is not None and count >= 2:
            fitted = fit_gaussian(torch.cat(self._features))
            distance = frechet_distance(self._reference, fitted)
        return {"accuracy": _mean(self._hits), "frechet": distance}


def _mean(parts: list[Tensor]) -> float:
    return torch.cat(parts).mean().item() if parts else math.nan
