"""A folder of image files for a trained tokenizer: found, read, and the bad ones left out."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from gear_dist.config.colour import parse_colour
from gear_dist.config.data import DataConfig
from gear_dist.data.images import BadImageError, crop, decode_image, resize_short_side
from gear_dist.data.tar_samples import IMAGE_SUFFIXES
from gear_dist.errors import DataError
from gear_dist.storage.file_kinds import is_hidden

_NAMED = 20
"""Bad files that are named on the terminal; more are counted."""


class BadFile(NamedTuple):
    """A file that is left out."""

    path: Path
    reason: str


def image_paths(folder: Path) -> list[Path]:
    """Image files of a folder and its subfolders, by name; hidden ones are left out.

    Raises:
        DataError: there is none, or no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"--images {folder}: no such folder")
    found = folder.rglob("*")
    paths = sorted(p for p in found if p.suffix.lower()[1:] in IMAGE_SUFFIXES and p.is_file())
    shown = [p for p in paths if not any(map(is_hidden, p.relative_to(folder).parts))]
    if not shown:
        raise DataError(f"--images {folder}: no images ({', '.join(IMAGE_SUFFIXES)}) found")
    return shown


def read_image(path: Path, data: DataConfig) -> torch.Tensor:
    """An image, resized and centre-cropped, uint8 (3, H, W).

    Raises:
        DataError: it cannot be read, or does not decode.
    """
    try:
        image = decode_image(path.read_bytes(), data.max_pixels, parse_colour(data.background))
    except (OSError, BadImageError) as error:
        raise DataError(f"{path}: {error}") from None
    square = crop(resize_short_side(image, data.image_size), data.image_size)
    return torch.from_numpy(np.asarray(square).transpose(2, 0, 1).copy())


class LeftOut:
    """Counts images that are left out, names the first ones, and refuses too many."""

    def __init__(self, total: int, max_bad_share: float) -> None:
        """Args:
        total: images in all.
        max_bad_share: of these.
        """
        self._total = total
        # One bad file among few is no reason to write nothing.
        self._allowed = max(1, int(max_bad_share * total)) if max_bad_share else 0
        self.count = 0

    def add(self, reason: str) -> None:
        """Count one; the reason names it.

        Raises:
            DataError: more than allowed.
        """
        self.count += 1
        if self.count > self._allowed:
            raise DataError(
                f"{reason}: {self.count:,} of {self._total:,} files are bad: mend or remove them, "
                "or raise --max-bad-share"
            )
        if self.count <= _NAMED:
            print(f"left out: {reason}", file=sys.stderr)

    def summarise(self) -> None:
        """Say how many, where not all were named."""
        if self.count > _NAMED:
            print(f"{self.count:,} files were left out", file=sys.stderr)


class ImageFiles:
    """Reads files one after another; what does not decode is named and skipped."""

    def __init__(self, paths: list[Path], data: DataConfig, max_bad_share: float) -> None:
        self.paths = paths
        self.bad: list[BadFile] = []
        """Those skipped so far."""
        self._data = data
        self._left_out = LeftOut(len(paths), max_bad_share)

    def __iter__(self) -> Iterator[tuple[Path, torch.Tensor]]:
        """Good files, each with its image, uint8 (3, H, W).

        Raises:
            DataError: more bad files than allowed, or not one that is good.
        """
        for path in self.paths:
            try:
                image = read_image(path, self._data)
            except DataError as error:
                self.bad.append(BadFile(path, str(error).removeprefix(f"{path}: ")))
                self._left_out.add(str(error))
                continue
            yield path, image
        self._left_out.summarise()
        if len(self.bad) == len(self.paths):
            raise DataError(f"--images: not one of {len(self.paths):,} files could be decoded")
