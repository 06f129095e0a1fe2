"""The samples that are compared with training images: generated, or read from where others are."""

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gear_dist.inference.subjects import Subjects
from gear_dist.progress import ImageProgress
from gear_dist.sheets.image_source import ImageSource
from gear_dist.sheets.sheet import Maker


class Samples(NamedTuple):
    """The images that are looked at."""

    pixels: Tensor
    """uint8 (B, 3, H, W)."""
    labels: list[str]
    """May have several lines."""
    facts: list[dict[str, Any]]


def generate_samples(maker: Maker, subjects: Subjects, seed: int) -> Samples:
    """Those of `gear-dist sample` with the same subjects and seed."""
    progress, done = ImageProgress("samples", subjects.num_images), 0

    def report(finished: int) -> None:
        nonlocal done
        progress.advance(finished - done)
        done = finished

    seeds, sampling = subjects.seeds(seed), maker.sampling
    condition = subjects.condition(maker.pair)
    pixels = maker.pair.generate(condition, seeds, sampling, on_batch=report)
    progress.finish()
    facts = [
        {
            **subjects.facts(i),
            "seed": subjects.asking_seed(i, own),
            "sampling": dataclasses.asdict(sampling),
            "command": maker.command(subjects, i, own, sampling),
        }
        for i, own in enumerate(seeds)
    ]
    labels = [f"{subjects.label(i)}\nseed {known['seed']}" for i, known in enumerate(facts)]
    return Samples(pixels, labels, facts)


def read_samples(source: ImageSource, count: int, batch: int) -> Samples:
    """The first images of a source."""
    parts = list(source.batches(batch, count))
    names = [name for part in parts for name in part.names]
    labels = [name.rpartition("/")[2] for name in names]
    return Samples(torch.cat([part.pixels for part in parts]), labels, [{"name": n} for n in names])
