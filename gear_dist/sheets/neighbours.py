"""Samples beside their nearest training images, and how near held-out images are, to compare.

A sample that is near a training image says little by itself: images of a small corpus are near each
other. So two other kinds of images are measured the same way, both after they went through the
tokenizer, from whose decoder samples come: held-out images, which no training has seen, and
training images. A generator that has learnt the distribution makes samples about as far from the
training images as the former are; one that repeats them makes samples as near as the latter.

Shapes: B images, V views, F features, k neighbours.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gear_dist.errors import ConfigError, DataError
from gear_dist.progress import ImageProgress
from gear_dist.sheets.features import Features
from gear_dist.sheets.image_source import ImageSource
from gear_dist.sheets.nearest import Nearest, Scaling
from gear_dist.sheets.samples import Samples
from gear_dist.sheets.sheet import Sheet, SheetImage
from gear_dist.storage.open import overlap

_COPIES = 200
"""Training images that show how near a copy is."""
SUSPICIOUS = 0.01
"""Share of the held-out images that may be as near to training images as a suspicious sample."""


class Search(NamedTuple):
    """How neighbours are found."""

    features: Features
    k: int
    mirrored: bool
    """Whether mirrored images count as the same, as where training mirrors them."""
    max_held_out: int
    batch: int
    prepare: Callable[[Tensor], Tensor]
    """What held-out images and copies go through, uint8 (B, 3, H, W): the tokenizer, or nothing."""

    def check(self, training: ImageSource) -> None:
        """Refuse more neighbours than there are images.

        Raises:
            ConfigError: there are fewer.
        """
        if self.k > training.total:
            raise ConfigError(
                f"--neighbours {self.k}: {training.address} has {training.total:,} images: use "
                "fewer"
            )


class Found(NamedTuple):
    """Samples with their neighbours, and the distances of the held-out images."""

    samples: Nearest
    held_out_H: Tensor
    """To the nearest training image, sorted."""
    copies_C: Tensor
    """Likewise of training images, which are as near as a sample that repeats one."""
    num_training: int

    def held_out_shares(self, distances: Tensor) -> Tensor:
        """For each distance, the share of the held-out images that are at most as far away."""
        below = torch.searchsorted(self.held_out_H, distances, right=True)
        return below / len(self.held_out_H)

    @property
    def distances(self) -> Tensor:
        """(B,) of each sample to its nearest training image."""
        return self.samples.distances_Qk[:, 0].contiguous()

    @property
    def num_suspicious(self) -> int:
        """Samples nearer to a training image than all but a hundredth of the held-out images."""
        return int((self.held_out_shares(self.distances) <= SUSPICIOUS).sum())

    @property
    def copies_suspicious_share(self) -> float:
        """Share of the copies that the same rule finds."""
        return float((self.held_out_shares(self.copies_C) <= SUSPICIOUS).float().mean())

    def facts(self) -> dict[str, Any]:
        """For programs."""
        at = torch.tensor([0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0])
        quantiles = torch.quantile(self.held_out_H, at)
        names = [f"{share:g}" for share in at.tolist()]
        return {
            "num_training": self.num_training,
            "num_held_out": len(self.held_out_H),
            "median_distance": float(self.distances.median()),
            "copies_median_distance": float(self.copies_C.median()),
            "held_out_quantiles": dict(zip(names, quantiles.tolist(), strict=True)),
            "num_suspicious": self.num_suspicious,
            "copies_suspicious_share": self.copies_suspicious_share,
        }


def check_apart(training: ImageSource, held_out: ImageSource) -> None:
    """Refuse held-out images that are the training images.

    Raises:
        ConfigError: one address is the other's, or above it.
    """
    if overlap(training.storage, held_out.storage):
        raise ConfigError(
            f"--held-out {held_out.address}: is not apart from --corpus {training.address}: name "
            "images that the model was not trained on"
        )


def find_neighbours(
    samples: Tensor, training: ImageSource, held_out: ImageSource, search: Search
) -> Found:
    """Pass over the training images once; samples and held-out images are in memory as features.

    Args:
        samples: uint8 (B, 3, H, W).
        training: images of the generator's training.
        held_out: images it was not trained on; the first ones of them.
        search: see there.

    Raises:
        ConfigError: more neighbours than training images. DataError: images cannot be read, or
            there are too few.
    """
    search.check(training)
    count = min(search.max_held_out, held_out.total)
    if count < 2:
        raise DataError(f"--held-out {held_out.address}: one image is too few: use at least 2")
    held_out_HF, rebuilt_HVF = _read("held-out images", held_out, count, search)
    _, copies_CVF = _read("copies", training, min(_COPIES, training.total), search)
    scaling = Scaling.of(held_out_HF)
    samples_BVF = torch.cat([_views(part, search) for part in samples.split(search.batch)])
    nearest = Nearest(scaling(samples_BVF), search.k, keep=True)
    baselines = [Nearest(scaling(queries), 1, keep=False) for queries in (rebuilt_HVF, copies_CVF)]
    progress = ImageProgress("training images", training.total)
    num_training = 0
    for batch in training.batches(search.batch):
        features_NF = scaling(search.features(batch.pixels))
        for each in (nearest, *baselines):
            each.add(features_NF, batch.names, batch.pixels)
        num_training += len(batch.names)
        progress.advance(len(batch.names))
    progress.finish()
    if num_training < search.k:
        raise DataError(f"{training.address}: only {num_training} images could be decoded")
    held_out_H, copies_C = (each.distances_Qk[:, 0].sort().values for each in baselines)
    return Found(nearest, held_out_H, copies_C, num_training)


def _read(title: str, source: ImageSource, count: int, search: Search) -> tuple[Tensor, Tensor]:
    """The first images' features (H, F), and those of their views (H, V, F) once prepared."""
    progress = ImageProgress(title, count)
    plain, prepared = [], []
    for part in source.batches(search.batch, count):
        plain.append(search.features(part.pixels))
        prepared.append(_views(search.prepare(part.pixels), search))
        progress.advance(len(part.names))
    progress.finish()
    return torch.cat(plain), torch.cat(prepared)


def _views(pixels: Tensor, search: Search) -> Tensor:
    """(B, V, F): as they are, and mirrored where that counts."""
    views = [pixels, pixels.flip(-1)] if search.mirrored else [pixels]
    return torch.stack([search.features(view) for view in views], dim=1)


def neighbours_sheet(samples: Samples, found: Found, search: Search, rows: int) -> Sheet:
    """A row a sample, the nearest to its neighbour first; the JSON has the same rows.

    Args:
        samples: as they were searched.
        found: what `find_neighbours` gave.
        search: as it was.
        rows: samples that are shown, at most.
    """
    nearest = found.samples
    order = found.distances.sort(stable=True).indices.tolist()
    shares = found.held_out_shares(found.distances).tolist()
    cells, labels = [], []
    for sample in order[:rows]:
        share = shares[sample]
        label = samples.labels[sample]
        labels.append(f"{label}\nas near or nearer:\n{100 * share:.1f} % of held-out")
        facts = {**samples.facts[sample], "held_out_share": share}
        neighbours = [
            SheetImage(nearest.images[sample][i], *_neighbour(nearest, sample, i))
            for i in range(search.k)
        ]
        own = SheetImage(samples.pixels[sample], {"sample": sample, **facts})
        cells.append([[own], *([each] for each in neighbours)])
    facts = {
        "sheet": "neighbours",
        "features": search.features.facts,
        "mirrored": search.mirrored,
        **found.facts(),
        "distances": [
            {"sample": i, **samples.facts[i], "distances": nearest.distances_Qk[i].tolist()}
            for i in order
        ],
    }
    return Sheet(
        title="Samples and their nearest training images",
        notes=describe(found) + ["Distances are in standard deviations of the features."],
        columns=["sample", "nearest", *(f"number {i}" for i in range(2, search.k + 1))],
        rows=labels,
        cells=cells,
        facts=facts,
    )


def _neighbour(nearest: Nearest, sample: int, place: int) -> tuple[dict[str, Any], str]:
    """What is known of a neighbour, and its caption."""
    distance = float(nearest.distances_Qk[sample, place])
    mirrored = bool(nearest.views_Qk[sample, place])
    name = nearest.names[sample][place]
    facts = {
        "neighbour_of": sample,
        "name": name,
        "distance": distance,
        "mirrored": mirrored,
    }
    shown = f"{distance:.3f}" + (", mirrored" if mirrored else "")
    return facts, f"{shown}\n{name.rpartition('/')[2]}"


def describe(found: Found) -> list[str]:
    """The result in sentences."""
    count = len(found.distances)
    samples, held_out, copies = (
        f"{float(distances.median()):.3f}"
        for distances in (found.distances, found.held_out_H, found.copies_C)
    )
    return [
        f"Median distance to the nearest of {found.num_training:,} training images: samples "
        f"{samples}, held-out images {held_out}, copies of training images {copies}.",
        f"{found.num_suspicious} of {count} samples are nearer than "
        f"{100 * (1 - SUSPICIOUS):.0f} % of {len(found.held_out_H):,} held-out images (by chance "
        f"about {SUSPICIOUS * count:.1f}); of copies, {100 * found.copies_suspicious_share:.0f} % "
        "are.",
    ]
