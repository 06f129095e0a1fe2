"""The evaluation protocol: class accuracy and Frechet distance of generated images, PSNR and SSIM
of reconstructions; several seeds, with and without guidance."""

import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gear_dist.data.labelled import LabelledImages
from gear_dist.evaluation.classifier import ClassifierStats, ReferenceClassifier
from gear_dist.evaluation.frechet import NAME as FRECHET_NAME
from gear_dist.evaluation.frechet import Gaussian, fit_gaussian, frechet_distance
from gear_dist.evaluation.metrics import (
    ClassifierAgreement,
    ImageBatch,
    Metric,
    ReconstructionQuality,
)
from gear_dist.models.generator import ClassCondition, Condition

Generate = Callable[[Condition, float, int], Tensor]
"""(condition of B images, guidance, seed) -> uint8 images (B, 3, H, W) on the CPU."""
Reconstruct = Callable[[Tensor], Tensor]
"""uint8 images (B, 3, H, W) -> uint8 images of that shape on the CPU."""


class EvaluationSettings(NamedTuple):
    """How much is generated."""

    images_per_class: int = 32
    """Generated images of each class, for each seed and guidance."""
    max_classes: int = 64
    """With more classes, this many evenly spaced ones are asked for."""
    seeds: tuple[int, ...] = (0, 1, 2)
    chunk: int = 256
    """Images at a time."""


DEFAULT_SETTINGS = EvaluationSettings()


class Seeds(NamedTuple):
    """A figure for each seed."""

    values: tuple[float, ...]
    median: float


class Generation(NamedTuple):
    """Generated images under one guidance."""

    guidance: float
    accuracy: Seeds
    """Share of images in which the judge sees the class that was asked for."""
    frechet: Seeds
    """FRECHET_NAME, generated against validation images."""


class Reconstruction(NamedTuple):
    """Reconstructed validation images."""

    psnr_db: float
    """Mean over images of each image's PSNR, 8-bit values on a 0 .. 1 scale."""
    ssim: float
    """Mean over images; nan below 11 pixels a side."""
    accuracy: float
    """Share of reconstructions whose class the judge still sees: the samples' ceiling; nan
    without a judge."""
    num_images: int


class Evaluation(NamedTuple):
    """Everything `evaluation.json` holds."""

    guided: Generation | None
    """With the run's guidance; None: there was no generator or no judge."""
    unguided: Generation | None
    """With guidance 1."""
    reconstruction: Reconstruction
    judge: ClassifierStats | None
    chance_accuracy: float
    num_generated: int
    """Images of each seed and guidance."""
    real_frechet: float
    """As many real validation images, the classes balanced, against the rest of them: what a
    perfect generator gets; nan where there are not twice as many."""
    warnings: tuple[str, ...]
    """Why figures are unreliable."""

    def to_json(self) -> dict[str, Any]:
        """Plain nested dictionaries; nan becomes None, so that any JSON reader takes it."""
        return {"frechet_name": FRECHET_NAME, **_plain(self)}

    def summary(self) -> list[str]:
        """Lines for the terminal."""
        lines = [
            f"reconstruction: PSNR {self.reconstruction.psnr_db:.2f} dB, "
            f"SSIM {self.reconstruction.ssim:.3f} ({self.reconstruction.num_images} images)"
        ]
        for found in (self.guided, self.unguided):
            if found is not None:
                lines.append(_generation_line(found))
        if self.judge is not None:
            lines.append(
                f"the classifier: {self.judge.accuracy:.1%} right on real validation images, "
                f"{self.reconstruction.accuracy:.1%} on reconstructions; "
                f"chance {self.chance_accuracy:.1%}; Frechet distance of real images "
                f"{self.real_frechet:.2f}"
            )
        return lines + [f"warning: {text}" for text in self.warnings]


def evaluate(
    *,
    generate: Generate | None,
    reconstruct: Reconstruct,
    judge: ReferenceClassifier | None,
    validation: LabelledImages,
    guidance: float,
    settings: EvaluationSettings = DEFAULT_SETTINGS,
    report: Callable[[str], None] = lambda line: None,
    not_generated: str = "no generator was trained",
) -> Evaluation:
    """Measure a trained pair.

    Args:
        generate: the generator's sampling of classes; None: there is none, see `not_generated`.
        reconstruct: the tokenizer, there and back.
        judge: the corpus's classifier; None: the corpus has fewer than two classes.
        validation: real images, also the reference of the Frechet distance.
        guidance: the run's default; 1 is measured beside it.
        settings: how much is generated.
        report: takes progress lines.
        not_generated: why `generate` is None.
    """
    reference = None
    real_frechet = math.nan
    labels = torch.empty(0, dtype=torch.long)
    if judge is not None:
        labels = _asked_labels(judge.stats.num_classes, settings)
        _, features = judge.predict(validation.images, settings.chunk)
        reference = fit_gaussian(features) if len(features) >= 2 else None
        real_frechet = _real_frechet(features, validation.labels, len(labels))
    found: dict[float, Generation] = {}
    if generate is not None and judge is not None:
        for scale in {guidance: None, 1.0: None}:
            found[scale] = _generation(
                generate, judge, reference, labels, scale, settings=settings, report=report
            )
    return Evaluation(
        guided=found.get(guidance),
        unguided=found.get(1.0),
        reconstruction=_reconstruction(reconstruct, judge, validation, settings.chunk),
        judge=judge.stats if judge else None,
        chance_accuracy=1 / judge.stats.num_classes if judge else math.nan,
        num_generated=len(labels) if found else 0,
        real_frechet=real_frechet,
        warnings=_warnings(generate, judge, validation, not_generated),
    )


def _asked_labels(num_classes: int, settings: EvaluationSettings) -> Tensor:
    count = min(num_classes, settings.max_classes)
    classes = torch.linspace(0, num_classes - 1, count).round().long()
    return classes.repeat_interleave(settings.images_per_class)


def _generation(
    generate: Generate,
    judge: ReferenceClassifier,
    reference: Gaussian | None,
    labels: Tensor,
    guidance: float,
    *,
    settings: EvaluationSettings,
    report: Callable[[str], None],
) -> Generation:
    accuracies, distances = [], []
    for seed in settings.seeds:
        metric = ClassifierAgreement(judge, reference, settings.chunk)
        metric.update(ImageBatch(generate(ClassCondition(labels), guidance, seed), labels))
        found = metric.compute()
        accuracies.append(found["accuracy"])
        distances.append(found["frechet"])
        report(
            f"guidance {guidance:g}, seed {seed}: accuracy {found['accuracy']:.3f}, "
            f"Frechet {found['frechet']:.2f}"
        )
    return Generation(guidance, _seeds(accuracies), _seeds(distances))


def _reconstruction(
    reconstruct: Reconstruct,
    judge: ReferenceClassifier | None,
    validation: LabelledImages,
    chunk: int,
) -> Reconstruction:
    metrics: list[Metric] = [ReconstructionQuality()]
    if judge is not None:
        metrics.append(ClassifierAgreement(judge))
    for images, labels in zip(
        validation.images.split(chunk), validation.labels.split(chunk), strict=True
    ):
        batch = ImageBatch(reconstruct(images), labels, images)
        for metric in metrics:
            metric.update(batch)
    found: dict[str, float] = {"accuracy": math.nan}
    for metric in metrics:
        found |= metric.compute()
    return Reconstruction(
        psnr_db=found["psnr_db"],
        ssim=found["ssim"],
        accuracy=found["accuracy"],
        num_images=len(validation.images),
    )


def _real_frechet(features: Tensor, labels: Tensor, count: int) -> float:
    if count < 2 or len(features) < 2 * count:
        return math.nan
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    # As many of each class, like the generated images: a class's first image comes before any
    # class's second one.
    seen: dict[int, int] = {}
    turns = []
    for label in labels[order].tolist():
        seen[label] = seen.get(label, 0) + 1
        turns.append(seen[label])
    shuffled = features[order[torch.tensor(turns).argsort(stable=True)]]
    return frechet_distance(fit_gaussian(shuffled[:count]), fit_gaussian(shuffled[count:]))


def _warnings(
    generate: Generate | None,
    judge: ReferenceClassifier | None,
    validation: LabelledImages,
    not_generated: str,
) -> tuple[str, ...]:
    found = [*judge.stats.warnings] if judge else []
    if generate is None:
        found.append(f"generated images are not measured: {not_generated}")
    elif judge is None:
        found.append("generated images are not measured: the corpus has fewer than two classes")
    elif len(validation.images) < 500:
        found.append(
            f"the Frechet distance's reference is {len(validation.images)} validation images only"
        )
    return tuple(found)


def _seeds(values: list[float]) -> Seeds:
    return Seeds(tuple(values), statistics.median(values))


def _generation_line(found: Generation) -> str:
    shares = ", ".join(f"{value:.1%}" for value in found.accuracy.values)
    distances = ", ".join(f"{value:.2f}" for value in found.frechet.values)
    return (
        f"guidance {found.guidance:g}: asked class {found.accuracy.median:.1%} (seeds: {shares}); "
        f"Frechet {found.frechet.median:.2f} ({distances})"
    )


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {name: _plain(item) for name, item in value._asdict().items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
