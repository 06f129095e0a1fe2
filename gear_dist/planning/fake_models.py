"""Networks of a configuration as tensors without memory, and what is counted on them."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gear_dist.config.schema import RunConfig
from gear_dist.config.text import TextEncoderConfig
from gear_dist.config.training import AlignmentConfig
from gear_dist.losses.perceptual import LPIPS
from gear_dist.models.discriminator.patchgan import SyncBatchNorm
from gear_dist.models.generator.rotary import rotary_table
from gear_dist.models.library_files import UnreachableError
from gear_dist.models.teachers import Teacher, untrained_teachers
from gear_dist.models.text_encoders import measure_text_encoder
from gear_dist.models.text_encoders.base import EncoderSize
from gear_dist.planning.memory import ParameterCounts
from gear_dist.training.networks import build_modules


class Skeleton(NamedTuple):
    """Everything that a step runs through, at no memory. Made and used in `fake_tensors`."""

    modules: dict[str, nn.Module]
    teachers: list[Teacher]
    lpips: LPIPS | None

    def weights(self) -> list[Tensor]:
        """Parameters and buffers of all parts."""
        parts = [*self.modules.values(), *self.teachers, *([self.lpips] if self.lpips else [])]
        return [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]


class ModelStats(NamedTuple):
    """What is counted on the networks beside their passes."""

    counts: ParameterCounts
    buffer_bytes: dict[str, int]
    """Floating-point buffers, by network."""
    norm_channels: tuple[int, ...]
    """Channels of the discriminator's batch norms; none where it has group norms."""
    tapped: int
    """Parameters of the generator and its projectors that the tokenizer's update passes through."""


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Tensors made inside have shapes and dtypes, and no memory."""
    rotary_table.cache_clear()
    try:
        with FakeTensorMode():
            yield
    finally:
        # What the cache took in here would be found by real networks.
        rotary_table.cache_clear()


def build_skeleton(config: RunConfig) -> Skeleton:
    """All networks at random weights, and the frozen ones that their losses need.

    Raises:
        ConfigError: a teacher whose size cannot be told.
    """
    teachers: list[Teacher] = []
    if config.alignment.enabled and config.stages.has_generator:
        teachers = untrained_teachers(
            config.teachers, image_size=config.data.image_size, grid_size=config.grid_size
        )
    modules = build_modules(config, tuple(teacher.width for teacher in teachers))
    perceives = config.losses.lpips_weight > 0 and config.stages.has_tokenizer
    return Skeleton(modules, teachers, LPIPS() if perceives else None)


def count_networks(config: RunConfig) -> ModelStats:
    """Counts of a configuration's networks. Loads nothing.

    Raises:
        ConfigError: a teacher whose size cannot be told.
    """
    with fake_tensors():
        built = build_skeleton(config)
        modules = built.modules
        return ModelStats(
            counts=ParameterCounts(
                **{name: _count(module) for name, module in modules.items()},
                teacher=sum(map(_count, built.teachers)),
                lpips=_count(built.lpips) if built.lpips else 0,
                text_encoder=measure_encoder(config).size.parameters,
            ),
            buffer_bytes={
                name: sum(b.nbytes for b in module.buffers() if b.is_floating_point())
                for name, module in modules.items()
            },
            norm_channels=tuple(
                norm.num_features
                for norm in modules["discriminator"].modules()
                if isinstance(norm, SyncBatchNorm)
            ),
            tapped=_count_tapped(
                modules["generator"], config.alignment, config.generator.tap_layer
            ),
        )


class EncoderStats(NamedTuple):
    """The frozen text encoder of a run."""

    size: EncoderSize
    note: str
    """For people."""


def measure_encoder(config: RunConfig) -> EncoderStats:
    """Sizes of the encoder that training holds; zeros, and why, where it holds none.

    Made in `fake_tensors`. A plan is possible where neither hub nor folder is, so an encoder whose
    sizes are unknown is a note and no error.
    """
    if not config.reads_captions:
        return EncoderStats(EncoderSize(), "")
    if config.data.caption_features:
        return EncoderStats(
            EncoderSize(), "features are read from data.caption_features, and no text encoder runs"
        )
    return _measure(config.text_encoder)


@functools.lru_cache(maxsize=8)
def _measure(section: TextEncoderConfig) -> EncoderStats:
    """Once a process: a plan asks several times, and a hub out of reach is slow to say so."""
    try:
        size = measure_text_encoder(section)
    except UnreachableError as error:
        return EncoderStats(
            EncoderSize(), f"the text encoder is not counted, its sizes are unknown: {error}"
        )
    return EncoderStats(
        size, f"text encoder {section.name}, {section.path}: {size.parameters:,} parameters"
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _count_tapped(generator: nn.Module, alignment: AlignmentConfig, tap_layer: int) -> int:
    if alignment.estimator != "soft":
        return _count(generator)
    beyond = ("generator.norm.", "generator.output.")
    total = 0
    for name, parameter in generator.named_parameters():
        parts = name.split(".")
        is_late = parts[1] == "layers" and int(parts[2]) >= tap_layer
        total += 0 if is_late or name.startswith(beyond) else parameter.numel()
    return total
