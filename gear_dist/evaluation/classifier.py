"""The reference classifier: trained on real images, used to score generated ones.

Its architecture and seed are not the teacher's, so that a generator guided by the teacher is not
judged by a relative of it. How well it does on real images stands beside every number it gives.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import xxhash
from torch import Tensor, nn

from gear_dist.config.colour import parse_colour
from gear_dist.config.data import DataConfig
from gear_dist.data.corpus import check_same_classes, open_corpus
from gear_dist.data.labelled import (
    LabelledImages,
    LoadSettings,
    load_labelled,
)
from gear_dist.models.classifier_training import (
    FitSettings,
    accuracies,
    fit,
    load_classifier,
    model_input,
    save_classifier,
)
from gear_dist.storage.atomic import make_folder
from gear_dist.storage.json_files import build_record
from gear_dist.storage.local import FileStorage

KIND = "gear-dist evaluation classifier, version 1"
FEATURE_WIDTH = 64
RELIABLE_IMAGES = 500
RELIABLE_ACCURACY = 0.9
MAX_SIDE = 64
_SEED = 7_001


class ClassifierRecipe(NamedTuple):
    """What a trained classifier is a function of; a cached file is reused where all matches."""

    image_size: int
    train_plan_hash: str
    validation_plan_hash: str
    steps: int
    batch: int = 64
    seed: int = _SEED

    def metadata(self) -> dict[str, Any]:
        """The recipe as it stands in a file's metadata."""
        return {"kind": KIND, **self._asdict()}


class ClassifierStats(NamedTuple):
    """How far the judge can be trusted."""

    accuracy: float
    """Share of real validation images that it classifies right."""
    num_train_images: int
    num_validation_images: int
    num_classes: int
    held_out: bool
    """Whether the validation images are other ones than it was trained on."""
    train_seconds: float

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why its verdicts are unreliable; empty: they are not."""
        found = []
        if self.num_train_images < RELIABLE_IMAGES:
            found.append(f"classifier unreliable: {self.num_train_images} training images only")
        if self.accuracy < RELIABLE_ACCURACY:
            found.append(f"classifier unreliable: {self.accuracy:.1%} right on real images")
        if not self.held_out:
            found.append("classifier's accuracy is on its own training images")
        return tuple(found)


class ResidualNet(nn.Module):
    """Residual blocks at 1/2, 1/4 and 1/8 of the resolution, GELU, mean pooling: 0.26 M parameters.

    Images larger than 64 pixels are first averaged down to at most that, so that the cost is
    bounded.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 5, stride=2, padding=2)
        self.blocks = nn.Sequential(
            _Residual(32, 32), _Residual(32, 64, stride=2), _Residual(64, 96, stride=2)
        )
        self.project = nn.Conv2d(96, FEATURE_WIDTH, 1)
        self.head = nn.Linear(FEATURE_WIDTH, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """(B, FEATURE_WIDTH) of images (B, 3, H, W) in [-1, 1]: before the linear head."""
        factor = -(-images.shape[-1] // MAX_SIDE)
        if factor > 1:
            images = F.avg_pool2d(images, factor)
        return F.gelu(self.project(self.blocks(self.stem(images)))).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits under "class"."""
        return {"class": self.head(self.features(images))}


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.GELU(),
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.GELU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        )
        same = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, stride, stride)

    def forward(self, maps: Tensor) -> Tensor:
        return self.body(maps) + self.skip(maps)


class ReferenceClassifier:
    """A trained classifier in evaluation mode, with its stats."""

    def __init__(
        self, net: ResidualNet, stats: ClassifierStats, device: torch.device | str
    ) -> None:
        # One layout, whether just trained or read from a file: kernels, and so rounding, follow it.
        net = net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.net = net.eval().requires_grad_(False)
        self.stats = stats
        self.device = device

    def predict(self, images_u8: Tensor, batch: int = 256) -> tuple[Tensor, Tensor]:
        """Predicted classes (N,) int64 and features (N, FEATURE_WIDTH) fp64, both on the CPU.

        Args:
            images_u8: (N, 3, H, W) uint8.
            batch: images at a time.
        """
        classes, features = [], []
        with torch.inference_mode():  # fp32: the Frechet distance sees bf16's rounding
            for chunk in images_u8.split(batch):
                found = self.net.features(model_input(chunk.to(self.device)))
                classes.append(self.net.head(found).argmax(1).cpu())
                features.append(found.double().cpu())
        return torch.cat(classes), torch.cat(features)


def load_or_train_classifier(
    data: DataConfig,
    cache: Path,
    *,
    device: torch.device | str = "cpu",
    steps: int,
    seconds: float = 120.0,
    report: Callable[[str], None] = lambda line: None,
) -> ReferenceClassifier | None:
    """The judge of a run's corpus: from the cache, or trained and put there.

    None: the corpus has fewer than two classes, so there is nothing to judge by.

    Args:
        data: names the corpora and the image size. Without a validation corpus the judge is
            measured on its training images, which its stats then say.
        cache: folder of trained judges; the file's name carries a hash of what it depends on.
        device: where it trains and works.
        steps: training steps.
        seconds: wall-clock limit of training.
        report: takes progress lines.

    Raises:
        DataError: unreachable or damaged corpora, other classes in validation than in training.
        NumericError: training diverged. StorageError: the cache cannot be written.
    """
    train = open_corpus(data.train, data.endpoint).manifest.info
    held_out = open_corpus(data.validation or data.train, data.endpoint).manifest.info
    check_same_classes(data.train, train.classes, data.validation, held_out.classes)
    if len(train.classes) < 2:
        return None
    recipe = ClassifierRecipe(data.image_size, train.plan_hash, held_out.plan_hash, steps)
    path = cache / f"classifier-{_digest(recipe)}.safetensors"
    make_folder(cache)  # before the training, not after it
    if kept := _load_judge(path, recipe, device):
        report(f"classifier: {path} kept")
        return kept
    net, judge = train_judge(
        load_training(data),
        load_validation(data),
        recipe,
        device=device,
        seconds=seconds,
        report=report,
    )
    FileStorage(cache).delete(path.name)  # a damaged one: the cache is nobody's work
    save_classifier(path, net, {**recipe.metadata(), "judge": judge._asdict()})
    return ReferenceClassifier(net, judge, device)


def _load_judge(
    path: Path, recipe: ClassifierRecipe, device: torch.device | str
) -> ReferenceClassifier | None:
    """The judge of a file; None: there is none, it is another recipe's, or damaged."""
    found = load_classifier(path)
    if not found or not recipe.metadata().items() <= found[0].items():
        return None
    try:
        stats = build_record(ClassifierStats, found[0].get("judge"))
        net = ResidualNet(stats.num_classes)
        net.load_state_dict(found[1])
    except (ValueError, RuntimeError):
        return None
    return ReferenceClassifier(net, stats, device)


def train_judge(
    training: LabelledImages,
    validation: LabelledImages,
    recipe: ClassifierRecipe,
    *,
    seconds: float = 120.0,
    device: torch.device | str = "cpu",
    report: Callable[[str], None] = lambda line: None,
) -> tuple[ResidualNet, ClassifierStats]:
    """Train on labelled images, measure on validation; see `load_or_train_classifier`.

    Raises:
        NumericError: training diverged.
    """
    torch.manual_seed(recipe.seed)
    net = ResidualNet(training.num_classes)
    settings = FitSettings(
        steps=recipe.steps,
        seconds=seconds,
        batch=recipe.batch,
        learning_rate=4e-3,
        label_smoothing=0.1,
        shift=0.12,
        seed=recipe.seed,
    )
    result = fit(net, training, settings, device=device, report=report)
    accuracy = accuracies(net, validation, device=device)["class"]
    stats = ClassifierStats(
        accuracy=round(accuracy, 4),
        num_train_images=training.num_sources,
        num_validation_images=validation.num_sources,
        num_classes=training.num_classes,
        held_out=recipe.train_plan_hash != recipe.validation_plan_hash,
        train_seconds=round(result.seconds, 1),
    )
    report(
        f"classifier: {accuracy:.1%} right on {stats.num_validation_images} real validation "
        f"images, {result.steps} steps in {result.seconds:.0f} s"
    )
    return net, stats


def load_training(data: DataConfig) -> LabelledImages:
    """Images of the training corpus, several crops of each where it is small.

    Raises:
        DataError: unreachable or damaged corpus.
    """
    settings = _load_settings(data, augment_below=2048)
    return load_labelled(data.train, settings, endpoint=data.endpoint)


def load_validation(data: DataConfig, max_images: int = 5000) -> LabelledImages:
    """The centre crops of the validation corpus (the training corpus where there is none).

    Raises:
        DataError: unreachable or damaged corpus.
    """
    settings = _load_settings(data, max_images=max_images)
    return load_labelled(data.validation or data.train, settings, endpoint=data.endpoint)


def _load_settings(data: DataConfig, **options: int) -> LoadSettings:
    """How a run's corpora are read: as its loader reads them."""
    return LoadSettings(
        data.image_size,
        max_pixels=data.max_pixels,
        background=parse_colour(data.background),
        **options,
    )


def _digest(recipe: ClassifierRecipe) -> str:
    return xxhash.xxh3_64_hexdigest(repr(sorted(recipe.metadata().items())).encode())
