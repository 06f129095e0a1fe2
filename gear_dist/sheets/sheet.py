"""What a contact sheet is: labelled rows and columns of images, and what is known of each."""

import dataclasses
import shlex
from typing import Any, NamedTuple

from torch import Tensor

from gear_dist.config.models import SamplingConfig
from gear_dist.inference.pipeline import GearPipeline
from gear_dist.inference.subjects import Subjects


class SheetImage(NamedTuple):
    """An image of a sheet."""

    pixels: Tensor
    """uint8 (3, H, W)."""
    facts: dict[str, Any]
    """For programs: what makes it again."""
    caption: str = ""
    """Below it; may have several lines."""


class Sheet(NamedTuple):
    """A sheet. Each cell holds as many images as others or fewer, row by row."""

    title: str
    notes: list[str]
    """Lines below the title."""
    columns: list[str]
    """Labels; may have several lines."""
    rows: list[str]
    cells: list[list[list[SheetImage]]]
    """Images by row, column and place in the cell."""
    facts: dict[str, Any]
    """Of the sheet as a whole."""


class Maker(NamedTuple):
    """The model that makes the images of a sheet."""

    pair: GearPipeline
    name: str
    """As a user would name it."""
    sampling: SamplingConfig
    """Settings that a sheet does not vary."""

    def command(self, subjects: Subjects, image: int, seed: int, sampling: SamplingConfig) -> str:
        """The command that makes an image of a sheet alone."""
        usual = self.pair.config.sampling
        options: list[str] = []
        for field in dataclasses.fields(sampling):
            value = getattr(sampling, field.name)
            if value != getattr(usual, field.name):
                options += _option(field.name.replace("_", "-"), value)
        words = ["gear-dist", "sample", self.name, *subjects.words(image, seed), "--count", "1"]
        return shlex.join([*words, *options])


def _option(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", str(value)]  # of a float all digits: it must be the same number


def short(number: float) -> str:
    """A setting's value as a label has it."""
    return f"{number:g}"
