"""The autoregressive generator: transformer and projectors."""

from collections.abc import Sequence

from gear_dist.config.schema import RunConfig
from gear_dist.config.training import AlignmentConfig
from gear_dist.models.generator.aligned import (
    AlignedGenerator,
    AlignedOutput,
    build_projector,
    find_teacher_widths,
)
from gear_dist.models.generator.conditioning import (
    ClassCondition,
    Condition,
    MixedClassCondition,
    TextCondition,
)
from gear_dist.models.generator.text_generator import TextGenerator
from gear_dist.models.generator.transformer import Generator, SoftTokens, StraightThroughTokens

__all__ = [
    "AlignedGenerator",
    "AlignedOutput",
    "ClassCondition",
    "Condition",
    "Generator",
    "MixedClassCondition",
    "SoftTokens",
    "StraightThroughTokens",
    "TextCondition",
    "TextGenerator",
    "build_aligned_generator",
    "build_generator",
    "find_teacher_widths",
]


GENERATORS: dict[str, type[Generator]] = {"class": Generator, "text": TextGenerator}
"""By `generator.condition`."""


def build_generator(config: RunConfig) -> Generator:
    """The generator of a configuration, randomly initialised."""
    return GENERATORS[config.generator.condition](
        config.generator,
        num_codes=config.tokenizer.codebook_size,
        grid_size=config.grid_size,
        kernels=config.engine.kernels,
    )


def build_aligned_generator(
    generator: Generator, alignment: AlignmentConfig, teacher_widths: Sequence[int]
) -> AlignedGenerator:
    """A generator with one projector a teacher, randomly initialised."""
    width, hidden = generator.config.width, alignment.projector_width
    return AlignedGenerator(
        generator, [build_projector(width, hidden, teacher) for teacher in teacher_widths]
    )
