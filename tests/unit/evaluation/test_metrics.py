"""Metrics over a stream: however images are batched, the figures are those of all of them."""

import math

import pytest
import torch
from torch import Tensor

from gear_dist.evaluation.frechet import fit_gaussian, frechet_distance
from gear_dist.evaluation.metrics import ClassifierAgreement, ImageBatch, ReconstructionQuality


class MeanColour:
    """A classifier that calls an image by its brightest channel; its features are the means."""

    def predict(self, images: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        means = images.double().mean((2, 3))
        return means.argmax(1), means


def some_images(count: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 12, 12), generator=random).to(torch.uint8)


IMAGES, ORIGINALS = some_images(12, 1), some_images(12, 2)
LABELS = torch.arange(12) % 4 - 1
"""A fourth of them unknown."""


@pytest.mark.parametrize("size", [12, 5, 1])
def test_batches_make_no_difference(size: int) -> None:
    reference = fit_gaussian(ORIGINALS.double().mean((2, 3)))
    quality = ReconstructionQuality()
    agreement = ClassifierAgreement(MeanColour(), reference)
    for images, labels, originals in zip(
        IMAGES.split(size), LABELS.split(size), ORIGINALS.split(size), strict=True
    ):
        quality.update(ImageBatch(images, originals=originals))
        agreement.update(ImageBatch(images, labels))
    classes, features = MeanColour().predict(IMAGES, 0)
    known = LABELS >= 0
    assert agreement.compute() == pytest.approx(
        {
            "accuracy": (classes == LABELS)[known].double().mean().item(),
            "frechet": frechet_distance(reference, fit_gaussian(features)),
        }
    )
    error = (IMAGES.double() - ORIGINALS.double()).div(255).square().mean((1, 2, 3))
    assert quality.compute()["psnr_db"] == pytest.approx((-10 * error.log10()).mean().item())


def test_too_little_is_no_figure() -> None:
    agreement = ClassifierAgreement(MeanColour(), fit_gaussian(torch.eye(3)))
    assert all(map(math.isnan, agreement.compute().values()))
    agreement.update(ImageBatch(IMAGES[:1], torch.tensor([-1])))
    assert all(map(math.isnan, agreement.compute().values()))
    quality = ReconstructionQuality()
    quality.update(ImageBatch(IMAGES[:, :, :8], originals=ORIGINALS[:, :, :8]))
    assert math.isnan(quality.compute()["ssim"])
