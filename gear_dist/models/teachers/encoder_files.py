"""Models of the transformers library from a local folder or the hub.

Only safetensors are read. The library's own settings act as everywhere: HF_HUB_OFFLINE, HF_HOME,
HF_TOKEN. It fills in at random what a file lacks, and only warns; here that is an error.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from gear_dist.config.models import TeacherConfig
from gear_dist.errors import ConfigError
from gear_dist.formatting import first_line
from gear_dist.models.teachers import TEACHERS, teacher_class
from gear_dist.storage.paths import expand_user, local_path

_SHOWN = 3


class EncoderFamily(Protocol):
    """What is asked of an `EncoderTeacher`'s class."""

    models: ClassVar[Mapping[str, str]]
    published: ClassVar[Mapping[str, Mapping[str, Any]]]
    patch_sizes: ClassVar[tuple[int, ...]]
    fixed_sizes: ClassVar[Mapping[str, Any]]


class UnreachableError(ConfigError):
    """Neither folder nor hub has the files."""


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
    with _explained(config, setting), _quiet():
        backbone, found = _model_class(family, sizes.model_type).from_pretrained(
            _source(config, setting),
            config=sizes,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    lacking = sorted([*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])])
    if lacking:
        names = ", ".join(lacking[:_SHOWN]) + (", ..." if len(lacking) > _SHOWN else "")
        raise ConfigError(
            f"{setting}.path={config.path} lacks {len(lacking)} weights of its model, or has them "
            f"in other shapes ({names}): use a whole checkpoint in the transformers library's "
            "layout"
        )
    return backbone


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
    with _explained(config, setting), _quiet():
        sizes_json, _ = PreTrainedConfig.get_config_dict(source)
        if not sizes_json:
            raise OSError("there is no config.json")
    model_type = sizes_json.get("model_type", "unnamed")
    if model_type not in family.models:
        raise ConfigError(
            f"{setting}.path={config.path} holds a {model_type!r} model, which {setting}.name="
            f"{config.name} does not read: {_advice(family, model_type, setting)}"
        )
    with _explained(config, setting), _quiet():
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
    """A local folder, or a hub name as it is given."""
    path = expand_user(local_path(config.path, f"{setting}.path"))
    if path.is_dir():
        return str(path)
    if config.path.startswith((".", "/", "~")) or path.exists():
        raise ConfigError(
            f"{setting}.path={config.path}: no such folder; give a folder with config.json and "
            "model.safetensors, or a hub name such as facebook/dinov2-base"
        )
    return config.path


@contextmanager
def _explained(config: TeacherConfig, setting: str) -> Iterator[None]:
    """Turn what the library raises into one line that names the setting and the fix."""
    try:
        yield
    except OSError as error:
        raise UnreachableError(
            f"{setting}.path={config.path}: weights are not reachable ({first_line(error)}); give "
            "a local folder with config.json and model.safetensors, or connect to the hub (unset "
            f"HF_HUB_OFFLINE), or use {setting}.name=convnet"
        ) from None
    except (ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise ConfigError(
            f"{setting}.path={config.path}: config.json or weights are damaged "
            f"({first_line(error)}): fetch them again"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, and no report of what a checkpoint has beside the vision encoder."""
    from transformers.utils import logging

    shows_progress, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_progress:
            logging.enable_progress_bar()
