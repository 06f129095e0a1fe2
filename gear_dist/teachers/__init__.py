"""Frozen encoders whose features the generator's tap is aligned to: the registry.

Importing it does not import torch, so that the command line stays quick.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gear_dist.config import TeacherConfig

if TYPE_CHECKING:
    from gear_dist.teachers.base import Teacher
    from gear_dist.teachers.normalisation import normalise_features

__all__ = ["TEACHERS", "Teacher", "load_teacher", "normalise_features"]


def _dinov2(path: str, image_size: int, grid_size: int) -> "Teacher":
    from gear_dist.teachers.dinov2 import load_dinov2

    return load_dinov2(path, image_size=image_size, grid_size=grid_size)


def _convnet(path: str, image_size: int, grid_size: int) -> "Teacher":
    from gear_dist.teachers.convnet import load_convnet

    return load_convnet(path, image_size=image_size, grid_size=grid_size)


TEACHERS: dict[str, Callable[[str, int, int], "Teacher"]] = {
    "convnet": _convnet,
    "dinov2": _dinov2,
}


def load_teacher(config: TeacherConfig, *, image_size: int, grid_size: int) -> "Teacher":
    """Load the frozen teacher that `teacher.name` and `teacher.path` name, in fp32 on the CPU.

    Args:
        config: the teacher section.
        image_size: side H = W of the images it will see, pixels.
        grid_size: token positions along a side.

    Raises:
        ConfigError: the weights are not reachable or do not fit the sizes.
    """
    return TEACHERS[config.name](config.path, image_size, grid_size)


def __getattr__(name: str) -> Any:
    if name == "Teacher":
        from gear_dist.teachers.base import Teacher

        return Teacher
    if name == "normalise_features":
        from gear_dist.teachers.normalisation import normalise_features

        return normalise_features
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
