"""A small convolutional teacher that needs no hub: trained on the corpus's classes and attributes.

Beside the class it learns every attribute that the corpus records, all with the same weight:
taught the class alone, it keeps little else of the image, and its features guide less.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gear_dist.config.models import TeacherConfig
from gear_dist.data.labelled import LabelledImages
from gear_dist.errors import ConfigError
from gear_dist.models.classifier_training import (
    FitSettings,
    accuracies,
    fit,
    load_classifier,
    save_classifier,
)
from gear_dist.models.teachers.base import Teacher
from gear_dist.storage.paths import expand_user, local_path

KIND = "gear-dist convnet teacher, version 1"
WIDTH = 128
_GRID_WIDTH = 96
_STEM_WIDTH = 32


class TeacherRecipe(NamedTuple):
    """What a trained teacher is a function of; a file is reused where all of it matches."""

    image_size: int
    grid_size: int
    steps: int
    batch: int
    seed: int
    plan_hash: str
    """Hash of the corpus's plan, from its manifest."""

    def metadata(self) -> dict[str, Any]:
        """The recipe as it stands in a file's metadata."""
        return {"kind": KIND, **self._asdict()}


class ConvNet(nn.Module):
    """Features at the token grid, with context from half its resolution, and linear heads.

    About 0.55 M parameters. `features` is centred (batch norm without a nonlinearity), so that
    cosines between positions span their whole range.
    """

    def __init__(self, *, image_size: int, grid_size: int, head_sizes: dict[str, int]) -> None:
        super().__init__()
        halvings = num_halvings(image_size, grid_size)
        folded = 2 if halvings >= 3 else 1
        levels = halvings - folded
        growth = _GRID_WIDTH / _STEM_WIDTH
        widths = [round(_STEM_WIDTH * growth ** (i / levels) / 16) * 16 for i in range(levels)]
        widths.append(_GRID_WIDTH)
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(2**folded),
            _block(3 * 4**folded, widths[0]),
            _block(widths[0], widths[0]),
        )
        self.trunk = nn.Sequential(
            *(_block(a, b, stride=2) for a, b in pairwise(widths)),
            _block(widths[-1], widths[-1]),
        )
        self.context = nn.Sequential(_block(widths[-1], WIDTH, stride=2), _block(WIDTH, WIDTH))
        self.lateral = nn.Conv2d(widths[-1], WIDTH, 1)
        self.project = nn.Sequential(
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH)
        )
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, n) for name, n in head_sizes.items()})

    def features(self, images: Tensor) -> Tensor:
        """Feature maps (B, WIDTH, grid_size, grid_size) of images (B, 3, H, W) in [-1, 1]."""
        local = self.trunk(self.stem(images.contiguous(memory_format=torch.channels_last)))
        context = F.interpolate(self.context(local), local.shape[-2:])
        return self.project(F.relu(self.lateral(local) + context))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits by target name from the mean over positions."""
        pooled = F.relu(self.features(images)).mean(dim=(2, 3))
        return {name: head(pooled) for name, head in self.heads.items()}


class ConvNetTeacher(Teacher):
    """A trained `ConvNet` without its heads."""

    def __init__(self, net: ConvNet, *, image_size: int, grid_size: int) -> None:
        super().__init__(image_size=image_size, grid_size=grid_size)
        net.heads.clear()
        self.net = net
        self.width = WIDTH
        self.freeze()

    @classmethod
    def load(cls, config: TeacherConfig, *, image_size: int, grid_size: int, setting: str) -> Self:
        """The teacher of a file; see `gear_dist.models.teachers.load_teacher`."""
        cls._check(config, setting)
        net = _load_net(config.path, image_size=image_size, grid_size=grid_size, setting=setting)
        return cls(net, image_size=image_size, grid_size=grid_size)

    @classmethod
    def untrained(
        cls, config: TeacherConfig, *, image_size: int, grid_size: int, setting: str
    ) -> Self:
        """The teacher at random weights."""
        cls._check(config, setting)
        net = ConvNet(image_size=image_size, grid_size=grid_size, head_sizes={})
        return cls(net, image_size=image_size, grid_size=grid_size)

    @staticmethod
    def _check(config: TeacherConfig, setting: str) -> None:
        if config.block:
            raise ConfigError(
                f"{setting}.block={config.block}: {setting}.name=convnet has no blocks: use 0"
            )

    def encode(self, images: Tensor) -> Tensor:
        """Features (B, L, WIDTH), raster order."""
        return self.net.features(images).flatten(2).mT


def num_halvings(image_size: int, grid_size: int) -> int:
    """log2 of the pixels per position.

    Raises:
        ConfigError: they are not a power of two from 2 on, or the grid is a single position.
    """
    stride = image_size // max(grid_size, 1)
    if grid_size < 2 or stride < 2 or stride & (stride - 1) or stride * grid_size != image_size:
        raise ConfigError(
            f"teacher.name=convnet: data.image_size={image_size} over the tokenizer's grid size "
            f"{grid_size} (tokenizer.channel_multipliers) must be a power of two from 2 on, with "
            "at least 2 positions a side"
        )
    return int(math.log2(stride))


def train_convnet(
    data: LabelledImages,
    recipe: TeacherRecipe,
    path: Path,
    *,
    seconds: float,
    device: torch.device | str = "cpu",
    held_out: LabelledImages | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train a teacher and publish it atomically under `path`.

    Args:
        data: training images at recipe.image_size.
        recipe: sizes, steps and seed.
        path: the file.
        seconds: wall-clock limit; the rate's schedule ends there where the steps do not first.
        device: where to train.
        held_out: images for the accuracies that are recorded; without them none are.
        report: takes progress lines.

    Returns:
        The metadata recorded in the file: the recipe, steps done, seconds, accuracies.

    Raises:
        NumericError: training diverged. StorageError: the file cannot be written.
    """
    torch.manual_seed(recipe.seed)
    sizes = {"class": data.num_classes, **data.attribute_sizes}
    net = ConvNet(image_size=recipe.image_size, grid_size=recipe.grid_size, head_sizes=sizes)
    settings = FitSettings(
        steps=recipe.steps,
        seconds=seconds,
        batch=recipe.batch,
        learning_rate=6e-3,
        # Attributes may tell left from right or a position: nothing is mirrored or moved far.
        flip=not data.attribute_sizes,
        shift=0.06 if data.attribute_sizes else 0.12,
        seed=recipe.seed,
    )
    result = fit(net, data, settings, device=device, report=report)
    measured = accuracies(net, held_out, device=device) if held_out is not None else {}
    metadata = {
        **recipe.metadata(),
        "head_sizes": sizes,
        "num_images": len(data.images),
        "steps_done": result.steps,
        "train_seconds": round(result.seconds, 1),
        "held_out_accuracy": {name: round(value, 4) for name, value in measured.items()},
    }
    save_classifier(path, net, metadata)
    return metadata


def _load_net(path: str, *, image_size: int, grid_size: int, setting: str) -> ConvNet:
    """The network of a file that `gear-dist teacher` wrote.

    Raises:
        ConfigError: the file is missing, damaged, or made for other sizes.
    """
    fix = (
        f"make one with `gear-dist teacher CORPUS --out FILE --image-size {image_size} "
        f"--grid-size {grid_size}`"
    )
    num_halvings(image_size, grid_size)
    found = load_classifier(expand_user(local_path(path, f"{setting}.path")))
    if found is None:
        raise ConfigError(f"{setting}.path={path}: no such file, or not a teacher's; {fix}")
    metadata, weights = found
    if metadata.get("kind") != KIND:
        raise ConfigError(f"{setting}.path={path} holds {metadata.get('kind')!r}; {fix}")
    sizes = (metadata.get("image_size"), metadata.get("grid_size"))
    if sizes != (image_size, grid_size):
        raise ConfigError(
            f"{setting}.path={path} was trained for {sizes[0]}-pixel images and a grid of "
            f"{sizes[1]}, this run has {image_size} and {grid_size}; {fix}"
        )
    try:
        net = ConvNet(image_size=image_size, grid_size=grid_size, head_sizes=metadata["head_sizes"])
        net.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        # Its metadata and tensors are not those that `gear-dist teacher` writes.
        raise ConfigError(
            f"{setting}.path={path}: damaged ({type(error).__name__}); {fix}"
        ) from None
    return net


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
