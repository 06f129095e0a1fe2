"""Whether images show what their captions say, told by a classifier of attributes.

For corpora whose samples record attributes, such as the sample corpus. The classifier is trained on
the training corpus; the captions are those of held-out images, whose attributes are known.
"""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import xxhash
from torch import Tensor, nn

from gear_dist.config.data import DataConfig
from gear_dist.data.corpus import open_corpus
from gear_dist.data.labelled import LabelledImages
from gear_dist.errors import ConfigError
from gear_dist.evaluation.classifier import FEATURE_WIDTH, ResidualNet, load_training
from gear_dist.models.classifier_training import (
    FitSettings,
    fit,
    load_classifier,
    predict,
    save_classifier,
)
from gear_dist.storage.atomic import make_folder
from gear_dist.storage.local import FileStorage

GenerateImages = Callable[[Sequence[str], int], Tensor]
"""(captions of B images, seed) -> uint8 images (B, 3, H, W) on the CPU."""
ALL = "all of them"
KIND = "gear-dist judge of attributes, version 1"
_SEED = 7_002


class CaptionScores(NamedTuple):
    """Shares of images that are right, by seed, and their median."""

    values: tuple[float, ...]
    median: float


class CaptionAgreement(NamedTuple):
    """What `evaluate` writes of a text-to-image run."""

    guidance: float
    attributes: tuple[str, ...]
    num_images: int
    """Of each seed."""
    all_right: CaptionScores
    """Images with all of the attributes right."""
    by_attribute: dict[str, CaptionScores]
    real: dict[str, float]
    """The classifier on the real images of these captions; with all right under `ALL`."""
    reconstructed: dict[str, float]
    """Likewise on their reconstructions: what a perfect generator of the tokenizer's codes gets."""

    def to_json(self) -> dict[str, Any]:
        """Plain nested dictionaries."""
        plain = self._asdict()
        plain["all_right"] = self.all_right._asdict()
        plain["by_attribute"] = {k: v._asdict() for k, v in self.by_attribute.items()}
        return plain

    def summary(self) -> list[str]:
        """Lines for the terminal."""
        scores = {ALL: self.all_right, **self.by_attribute}
        head = (
            f"captions: {self.num_images} images a seed, guidance {self.guidance:g}, of "
            f"{', '.join(self.attributes)}:"
        )
        return [
            head,
            *(
                f"  {name}: {found.median:.1%} right ({min(found.values):.1%} to "
                f"{max(found.values):.1%}; real images {self.real[name]:.1%}, reconstructions "
                f"{self.reconstructed[name]:.1%})"
                for name, found in scores.items()
            ),
        ]


class AttributeNet(nn.Module):
    """The trunk of the class judge with a linear head for each attribute."""

    def __init__(self, sizes: dict[str, int]) -> None:
        super().__init__()
        self.trunk = ResidualNet(1)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(FEATURE_WIDTH, size) for name, size in sizes.items()}
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits by attribute."""
        features = self.trunk.features(images)
        return {name: head(features) for name, head in self.heads.items()}


def choose_attributes(wanted: Sequence[str], sizes: dict[str, int]) -> tuple[str, ...]:
    """The wanted attributes, or all.

    Raises:
        ConfigError: the corpus has no such attribute.
    """
    unknown = [name for name in wanted if name not in sizes]
    if unknown:
        raise ConfigError(
            f"--attributes {','.join(wanted)}: the corpus has no {unknown[0]}; it has "
            f"{', '.join(sizes) or 'none'}"
        )
    return tuple(wanted) or tuple(sizes)


def train_attribute_judge(
    training: LabelledImages,
    attributes: Sequence[str],
    *,
    steps: int,
    seconds: float = 120.0,
    device: torch.device | str = "cpu",
    report: Callable[[str], None] = lambda line: None,
) -> AttributeNet:
    """Train a classifier of the attributes; images are not mirrored, captions may name sides."""
    torch.manual_seed(_SEED)
    net = AttributeNet({name: training.attribute_sizes[name] for name in attributes})
    settings = FitSettings(
        steps=steps,
        seconds=seconds,
        learning_rate=4e-3,
        label_smoothing=0.1,
        shift=0.06,
        flip=False,
        seed=_SEED,
    )
    fit(net, training, settings, device=device, report=report)
    return net


class JudgeRecipe(NamedTuple):
    """What a trained judge is a function of; a cached file is reused where all matches."""

    image_size: int
    train_plan_hash: str
    attributes: tuple[str, ...]
    steps: int
    seed: int = _SEED

    def metadata(self) -> dict[str, Any]:
        """The recipe as it stands in a file's metadata."""
        return {"kind": KIND, **self._asdict(), "attributes": list(self.attributes)}


def load_or_train_attribute_judge(
    data: DataConfig,
    attributes: Sequence[str],
    cache: Path,
    *,
    steps: int,
    device: torch.device | str = "cpu",
    report: Callable[[str], None] = lambda line: None,
) -> AttributeNet:
    """The judge of a run's corpus: from the cache, or trained and put there.

    Args:
        data: names the training corpus and the image size.
        attributes: that it tells.
        cache: folder of trained judges; the file's name carries a hash of what it depends on.
        steps: training steps.
        device: where it trains and works.
        report: takes progress lines.

    Raises:
        DataError: unreachable or damaged corpus. StorageError: the cache cannot be written.
    """
    plan_hash = open_corpus(data.train, data.endpoint).manifest.info.plan_hash
    recipe = JudgeRecipe(data.image_size, plan_hash, tuple(attributes), steps)
    digest = xxhash.xxh3_64_hexdigest(repr(sorted(recipe.metadata().items())).encode())
    path = cache / f"attributes-{digest}.safetensors"
    make_folder(cache)  # before the training, not after it
    net = _load_judge(path, recipe)
    if net is None:
        training = load_training(data)
        net = train_attribute_judge(training, attributes, steps=steps, device=device, report=report)
        FileStorage(cache).delete(path.name)  # a damaged one: the cache is nobody's work
        sizes = {name: training.attribute_sizes[name] for name in attributes}
        save_classifier(path, net, {**recipe.metadata(), "sizes": sizes})
    else:
        report(f"classifier of attributes: {path} kept")
    # One layout, whether just trained or read from a file: kernels, and so rounding, follow it.
    net = net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net.eval().requires_grad_(False)


def _load_judge(path: Path, recipe: JudgeRecipe) -> AttributeNet | None:
    """The judge of a file; None: there is none, it is another recipe's, or damaged."""
    found = load_classifier(path)
    if not found or not recipe.metadata().items() <= found[0].items():
        return None
    try:
        net = AttributeNet({name: int(found[0]["sizes"][name]) for name in recipe.attributes})
        net.load_state_dict(found[1])
    except (KeyError, TypeError, ValueError, RuntimeError):
        return None
    return net


def score_captions(
    generate: GenerateImages,
    reconstruct: Callable[[Tensor], Tensor],
    judge: AttributeNet,
    held_out: LabelledImages,
    *,
    count: int,
    guidance: float,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
    report: Callable[[str], None] = lambda line: None,
) -> CaptionAgreement:
    """Generate an image for each of the first captions, and compare what the judge sees in it.

    Args:
        generate: of the run.
        reconstruct: of the run, for uint8 images (B, 3, H, W).
        judge: of its corpus.
        held_out: images with captions and attributes.
        count: captions of each seed, at most as many as there are.
        guidance: that `generate` uses, for the record.
        seeds: each a series of images.
        device: of the judge.
        report: takes progress lines.
    """
    count = min(count, len(held_out.captions))
    captions = held_out.captions[:count]
    targets = {name: held_out.attributes[name][:count] for name in judge.heads}
    rows = []
    for seed in seeds:
        rows.append(_hits(judge, generate(captions, seed), targets, device))
        report(f"captions, seed {seed}: {_all_right(rows[-1]):.1%} have all attributes right")
    images = held_out.images[:count]
    real, rebuilt = (
        _hits(judge, shown, targets, device) for shown in (images, reconstruct(images))
    )
    return CaptionAgreement(
        guidance=guidance,
        attributes=tuple(targets),
        num_images=count,
        all_right=_scores([_all_right(row) for row in rows]),
        by_attribute={name: _scores([_share(row[name]) for row in rows]) for name in targets},
        real=_all_shares(real),
        reconstructed=_all_shares(rebuilt),
    )


def _hits(
    judge: AttributeNet, images: Tensor, targets: dict[str, Tensor], device: torch.device | str
) -> dict[str, Tensor]:
    seen = predict(judge, images, device=device)
    return {name: seen[name].argmax(1) == target for name, target in targets.items()}


def _all_right(hits: dict[str, Tensor]) -> float:
    return _share(torch.stack(list(hits.values())).all(dim=0))


def _all_shares(hits: dict[str, Tensor]) -> dict[str, float]:
    return {ALL: _all_right(hits), **{name: _share(found) for name, found in hits.items()}}


def _share(hits: Tensor) -> float:
    return hits.double().mean().item()


def _scores(values: Sequence[float]) -> CaptionScores:
    return CaptionScores(tuple(values), statistics.median(values))
