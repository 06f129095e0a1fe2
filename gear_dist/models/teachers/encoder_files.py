"""Vision encoders of the transformers library from a local folder or the hub."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol

from gear_dist.config.models import TeacherConfig
from gear_dist.errors import ConfigError
from gear_dist.models.library_files import (
    UnreachableError,
    explained,
    find_source,
    quiet,
    read_model,
)
from gear_dist.models.teachers import TEACHERS, teacher_class


class EncoderFamily(Protocol):
    """What is asked of an `EncoderTeacher`'s class."""

    models: ClassVar[Mapping[str, str]]
    published: ClassVar[Mapping[str, Mapping[str, Any]]]
    patch_sizes: ClassVar[tuple[int, ...]]
    fixed_sizes: ClassVar[Mapping[str, Any]]


def load_backbone(family: type[EncoderFamily], config: TeacherConfig, setting: str) -> Any:
    """A family's model with its weights, fp32 on the CPU, in evaluation mode.

    Args:
        family: whose.
        config: the teacher's section.
        setting: the section's name, for errors.

    Raises:
        ConfigError: the weights are not reachable, damaged, incomplete, or of another family.
    """
    sizes = _read_sizes(family, config, setting)
    model_class = _model_class(family, sizes.model_type)
    with _reading(config, setting):
        return read_model(model_class, _source(config, setting), config.path, setting, config=sizes)


def empty_backbone(family: type[EncoderFamily], config: TeacherConfig, setting: str) -> Any:
    """A family's model without initialisation, of published sizes or those of config.json.

    Raises:
        ConfigError: config.json is not reachable, or of another family.
    """
    from transformers.initialization import no_init_weights

    sizes_json = family.published.get(config.path)
    if sizes_json is not None:
        sizes = _make_sizes(family, sizes_json)
        _check_sizes(family, config, setting, sizes)
    else:
        try:
            sizes = _read_sizes(family, config, setting)
        except UnreachableError as error:
            known = ", ".join(family.published)
            raise ConfigError(f"{error}; sizes known without the hub: {known}") from None
    with no_init_weights():  # it looks at values, which tensors without memory lack
        return _model_class(family, sizes.model_type)(sizes)


def _model_class(family: type[EncoderFamily], model_type: str) -> Any:
    import transformers

    return getattr(transformers, family.models[model_type])


def _make_sizes(family: type[EncoderFamily], sizes_json: Mapping[str, Any]) -> Any:
    given = {key: value for key, value in sizes_json.items() if key != "model_type"}
    config_class = _model_class(family, sizes_json["model_type"]).config_class
    return config_class(**{**given, **family.fixed_sizes})


def _read_sizes(family: type[EncoderFamily], config: TeacherConfig, setting: str) -> Any:
    """config.json of the vision encoder, checked; of one with a text encoder, its vision part."""
    from transformers import PreTrainedConfig

    source = _source(config, setting)
    with _reading(config, setting):
        sizes_json, _ = PreTrainedConfig.get_config_dict(source)
        if not sizes_json:
            raise OSError("there is no config.json")
    model_type = sizes_json.get("model_type", "unnamed")
    if model_type not in family.models:
        raise ConfigError(
            f"{setting}.path={config.path} holds a {model_type!r} model, which {setting}.name="
            f"{config.name} does not read: {_advice(family, model_type, setting)}"
        )
    with _reading(config, setting):
        config_class = _model_class(family, model_type).config_class
        sizes = config_class.from_pretrained(source, **family.fixed_sizes)
    _check_sizes(family, config, setting, sizes)
    return sizes


def _advice(family: type[EncoderFamily], model_type: str, setting: str) -> str:
    for name in TEACHERS:
        if model_type in teacher_class(name).models:
            return f"set {setting}.name={name}"
    return f"use a model such as {next(iter(family.published))}"


def _check_sizes(
    family: type[EncoderFamily], config: TeacherConfig, setting: str, sizes: Any
) -> None:
    if sizes.patch_size not in family.patch_sizes:
        raise ConfigError(
            f"{setting}.path={config.path} has patch size {sizes.patch_size}: {setting}.name="
            f"{config.name} reads models of {' or '.join(map(str, family.patch_sizes))}"
        )
    if config.block > sizes.num_hidden_layers:
        raise ConfigError(
            f"{setting}.block={config.block} is beyond the depth: {config.path} has "
            f"{sizes.num_hidden_layers} blocks"
        )


def _source(config: TeacherConfig, setting: str) -> str:
    return find_source(config.path, setting, "facebook/dinov2-base")


@contextmanager
def _reading(config: TeacherConfig, setting: str) -> Iterator[None]:
    with explained(config.path, setting, f"{setting}.name=convnet"), quiet():
        yield
