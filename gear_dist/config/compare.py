"""Which settings identify a run, and which may change when it resumes. No torch."""

import dataclasses
import functools
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from gear_dist.config.loading import new_name, to_dict
from gear_dist.config.models import GeneratorConfig, TeacherConfig
from gear_dist.config.schema import RunConfig, architecture_settings

MORE_TEACHERS = "more_teachers."


def differing_settings(old: Mapping[str, Any], config: RunConfig) -> list[str]:
    """Settings by which a configuration defines another run, each with both values.

    Every setting identifies the run except those in MAY_CHANGE; those in MAY_GROW may grow.

    Args:
        old: the other run's configuration as plain data, of whatever version.
    """
    before = {new_name(key): value for key, value in flatten(old).items()}
    before = default_settings(before) | before
    after = flatten(to_dict(config))
    # A teacher that only one of the two has is missing in the other.
    removed = [key for key in before if key.startswith(MORE_TEACHERS) and key not in after]
    pairs = {key: (before.get(key, "none"), after.get(key, "none")) for key in [*after, *removed]}
    return [
        f"{key}={now} (the run has {then})"
        for key, (then, now) in pairs.items()
        if _defines_another_run(key, then, now)
    ]


def differing_architecture(network: str, ours: RunConfig, theirs: RunConfig) -> list[str]:
    """Settings that shape a network of `INIT_NETWORKS` and differ, each with both values."""
    section, names = architecture_settings(network)
    if network == "generator":
        names = _shared_generator_settings(names, ours.generator, theirs.generator)
    mine, other = (to_dict(getattr(config, section)) for config in (ours, theirs))
    return [
        f"{section}.{name}={mine[name]} ({other[name]} there)"
        for name in names
        # No weight depends on which layer is read.
        if name != "tap_layer" and mine[name] != other[name]
    ]


def _shared_generator_settings(
    names: Iterable[str], ours: GeneratorConfig, theirs: GeneratorConfig
) -> tuple[str, ...]:
    """Those that count between two generators; captions may begin with the weights of classes."""
    begins = (ours.condition, theirs.condition) == ("text", "class")
    left_out = {"condition"} if begins else set()
    if ours.condition == "text":
        left_out.add("num_classes")
    of_text = not begins and ours.condition == "text"
    return tuple(
        name for name in names if name not in left_out and (of_text or not name.startswith("text_"))
    )


def default_settings(given: Iterable[str] = ()) -> dict[str, Any]:
    """The default of every setting by its dotted name, of each teacher in `given` too."""
    sections = {key.rpartition(".")[0] for key in given if key.startswith(MORE_TEACHERS)}
    teacher = to_dict(TeacherConfig())
    more = {f"{section}.{name}": teacher[name] for section in sections for name in teacher}
    return flatten(to_dict(RunConfig())) | more


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys: {"data": {"flip": 0.5}} gives {"data.flip": 0.5}."""
    flat: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _defines_another_run(key: str, old: Any, new: Any) -> bool:
    section, name = _section_of(key)
    free = getattr(section, "MAY_CHANGE", ())
    if "*" in free or name in free:
        return False
    if name in getattr(section, "MAY_GROW", ()):
        return new < old
    return old != new


@functools.cache
def _section_of(key: str) -> tuple[Any, str]:
    """The class of a setting's section, and its name there; `more_teachers` has any names."""
    section: Any = RunConfig
    *parts, name = key.split(".")
    for part in parts:
        if dataclasses.is_dataclass(section):
            section = typing.get_type_hints(section).get(part)
    return section, name
