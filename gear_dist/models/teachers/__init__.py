"""Frozen encoders whose features the generator's tap is aligned to: the registry.

Importing it does not import torch, so that the command line stays quick.
"""

import importlib
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gear_dist.config.models import TeacherConfig

if TYPE_CHECKING:
    from gear_dist.models.teachers.base import Teacher
    from gear_dist.models.teachers.normalisation import normalise_features

__all__ = [
    "TEACHERS",
    "Teacher",
    "load_teacher",
    "load_teachers",
    "normalise_features",
    "teacher_class",
    "untrained_teachers",
]

TEACHERS = {
    "clip": "clip.ClipTeacher",
    "convnet": "convnet.ConvNetTeacher",
    "dinov2": "dinov2.DinoV2Teacher",
    "dinov3": "dinov3.DinoV3Teacher",
    "siglip2": "siglip2.Siglip2Teacher",
    "vjepa2": "vjepa2.VJepa2Teacher",
}
"""Module in this package and class of each `teacher.name`."""


def teacher_class(name: str) -> "type[Teacher]":
    """The class of a `teacher.name`; imports torch."""
    module, _, attribute = TEACHERS[name].partition(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def load_teacher(
    config: TeacherConfig, *, image_size: int, grid_size: int, setting: str = "teacher"
) -> "Teacher":
    """Load one frozen teacher with its weights, in fp32 on the CPU.

    Args:
        config: its section.
        image_size: side H = W of the images it will see, pixels.
        grid_size: token positions along a side.
        setting: name of the section, for errors.

    Raises:
        ConfigError: the weights are not reachable, of another family, or do not fit the settings.
    """
    teacher = teacher_class(config.name).load(
        config, image_size=image_size, grid_size=grid_size, setting=setting
    )
    teacher.set_normalisation(config, setting)
    return teacher


def load_teachers(
    sections: Mapping[str, TeacherConfig], *, image_size: int, grid_size: int
) -> "list[Teacher]":
    """All teachers of a run, in the order of their projectors; see `load_teacher`.

    Args:
        sections: by name, as `RunConfig.teachers` has them.
    """
    teachers = [
        load_teacher(section, image_size=image_size, grid_size=grid_size, setting=setting)
        for setting, section in sections.items()
    ]
    _share_passes(sections.values(), teachers)
    return teachers


def _share_passes(sections: Iterable[TeacherConfig], teachers: "list[Teacher]") -> None:
    """Teachers of one model at several blocks are read from one pass, the deepest one's."""
    by_model: dict[tuple[str, str], list[Any]] = {}
    for section, teacher in zip(sections, teachers, strict=True):
        if hasattr(teacher, "share"):
            by_model.setdefault((section.name, section.path), []).append(teacher)
    for same in by_model.values():
        deepest = max(same, key=lambda teacher: teacher.block or math.inf)
        for teacher in same:
            if teacher is not deepest:
                teacher.share(deepest)


def untrained_teachers(
    sections: Mapping[str, TeacherConfig], *, image_size: int, grid_size: int
) -> "list[Teacher]":
    """The same teachers with no weights of use: for their sizes. Reads config.json at most.

    Raises:
        ConfigError: a teacher whose sizes are not known here.
    """
    teachers = [
        teacher_class(section.name).untrained(
            section, image_size=image_size, grid_size=grid_size, setting=setting
        )
        for setting, section in sections.items()
    ]
    _share_passes(sections.values(), teachers)
    return teachers


def __getattr__(name: str) -> Any:
    if name == "Teacher":
        from gear_dist.models.teachers.base import Teacher

        return Teacher
    if name == "normalise_features":
        from gear_dist.models.teachers.normalisation import normalise_features

        return normalise_features
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
