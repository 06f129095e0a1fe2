"""Run files: YAML with bases, `key=value` overrides, and back. No torch.

A run is described by one file or by several parts, and a file may name others to build on
(`base: [tiny.yaml]`, paths relative to it). Later sources win: dataclass defaults, each file after
its bases, then overrides.
"""

import dataclasses
import difflib
import math
import os
import re
import typing
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from gear_dist.config.kinds import check_kind
from gear_dist.config.schema import RunConfig, architecture_settings
from gear_dist.config.training import INIT_NETWORKS
from gear_dist.config.yaml_text import load_yaml_text
from gear_dist.errors import ConfigError
from gear_dist.formatting import first_line
from gear_dist.redaction import refuse_user
from gear_dist.storage.paths import local_path

FilePath = str | Path
MAX_WHOLE_SETTING = 2**63 - 1
# ValueError: bytes that are no text, and numbers of thousands of digits.
_UNREADABLE = (yaml.YAMLError, OmegaConfBaseException, ValueError, AttributeError)
RENAMED = {
    "stages.start_from": "stages.init_from",
    "stages.start_networks": "stages.init_networks",
    "watchdog": "collapse",
}
"""Old names of settings: answered with the new one; what a run has saved under them is read."""
_INTERPOLATION = re.compile(r"(\\*)\$\{")
ANY_NAME = "NAME"
"""Stands for the names of sections that a user chooses."""


def named_sections(kind: Any) -> type | None:
    """The class of the sections in a setting that is a dictionary of such; None: it is none."""
    return typing.get_args(kind)[1] if typing.get_origin(kind) is dict else None


def _leaf_kinds(schema: type, prefix: str = "") -> dict[str, Any]:
    """Types of all settings by key, `ANY_NAME` in the place of names that a user chooses."""
    hints = typing.get_type_hints(schema)
    kinds: dict[str, Any] = {}
    for item in dataclasses.fields(schema):
        key, kind = prefix + item.name, hints[item.name]
        if section := named_sections(kind):
            kinds |= _leaf_kinds(section, f"{key}.{ANY_NAME}.")
        elif dataclasses.is_dataclass(kind):
            kinds |= _leaf_kinds(typing.cast(type, kind), f"{key}.")
        else:
            kinds[key] = kind
    return kinds


def _as_known(key: str, known: list[str]) -> tuple[str, str]:
    """A key with `ANY_NAME` for the name that a user chose, and that name."""
    section, _, rest = key.partition(".")
    name = rest.partition(".")[0]
    if not name or not any(one.startswith(f"{section}.{ANY_NAME}.") for one in known):
        return key, ANY_NAME
    return f"{section}.{ANY_NAME}{rest.removeprefix(name)}", name


def _leaves(node: dict[str, Any], kinds: dict[str, Any], prefix: str = "") -> Iterator[Any]:
    """Keys and values of all settings; a key that is no setting comes with what is below it."""
    for name, child in node.items():
        key = f"{prefix}{name}"
        is_setting = _as_known(key, list(kinds))[0] in kinds
        if isinstance(child, dict) and child and not is_setting:
            yield from _leaves(child, kinds, f"{key}.")
        elif not isinstance(child, dict) or child or is_setting:
            yield key, child


def _check_node(node: dict[str, Any], where: str) -> None:
    """Refuse names that are no setting's, and values that are not of its type."""
    kinds = _leaf_kinds(RunConfig)
    known = list(kinds)
    for name in node:
        if "." in str(name):
            section, _, rest = str(name).partition(".")
            raise ConfigError(f"{where}: {name} is one name here: write {section}: {{{rest}: ...}}")
    for key, value in _leaves(node, kinds):
        found, name = _as_known(key, known)
        if found in kinds:
            check_kind(where, key, kinds[found], value)
            continue
        if any(one.startswith(found + ".") for one in known):
            raise ConfigError(f"{where}: {key} is a section, not a setting: give {key}.NAME=VALUE")
        if (new := new_name(key)) != key:
            raise ConfigError(f"{where}: the setting {key} is now called {new}")
        close = [one.replace(ANY_NAME, name) for one in _similar(found, known)]
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ConfigError(f"{where}: unknown setting {key}{hint}")


def new_name(key: str) -> str:
    """A setting's name today, whatever version gave it."""
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            return new + key.removeprefix(old)
    return key


def _similar(key: str, known: list[str]) -> list[str]:
    """Settings that an unknown one may mean: of its section those that have its name for a word
    (lr: tokenizer_lr), else the nearest in spelling, else those of this name in other sections."""
    section, _, last = key.rpartition(".")
    inside = [one for one in known if one.rpartition(".")[0] == section]
    return (
        [one for one in inside if last in one.rpartition(".")[2].split("_")]
        or difflib.get_close_matches(key, known, 1, 0.6)
        or [one for one in known if one.rpartition(".")[2] == last][:1]
    )


def _read_file(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    path = local_path(path)
    if path in seen:
        raise ConfigError(f"{path}: base files form a circle")
    try:
        node: Any = load_yaml_text(path.read_bytes())
    except FileNotFoundError:
        named = f" (base of {seen[-1]})" if seen else ""
        raise ConfigError(f"{path}: no such configuration file{named}") from None
    except (OSError, *_UNREADABLE) as error:
        raise ConfigError(f"{path}: not readable YAML: {_problem(error)}") from None
    node = {} if node in (None, "") else node
    if not isinstance(node, dict):
        raise ConfigError(f"{path}: expected sections such as `data:`, found {type(node).__name__}")
    bases = node.pop("base", "") or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: base={bases!r} must be a file or a list of files")
    parents = [_read_file(_real(path.parent / base), (*seen, path)) for base in bases]
    sections = {name: {} if child == "" else child for name, child in node.items()}
    return [*(layer for parent in parents for layer in parent), (str(path), sections)]


def _real(path: Path) -> Path:
    """The file behind links; Path.resolve raises where they form a circle."""
    return Path(os.path.realpath(path))


def _read_overrides(overrides: list[str]) -> dict[str, Any]:
    """The overrides as nested sections; of several for one setting the last one counts."""
    kinds = _leaf_kinds(RunConfig)
    result: dict[str, Any] = {}
    for item in overrides:
        name, equals, text = item.partition("=")
        key = name.strip()
        if not equals or not key:
            raise ConfigError(f"{item!r}: an override is key=value, such as data.image_size=64")
        known, _ = _as_known(key, list(kinds))
        node: Any = _read_value(item, text, kinds.get(known))
        for part in reversed(key.split(".")):
            node = {part: node}
        _put(node, result)
    return result


def _put(node: dict[str, Any], result: dict[str, Any]) -> None:
    for name, child in node.items():
        known = result.get(name)
        if isinstance(child, dict) and isinstance(known, dict):
            _put(child, known)
        else:
            result[name] = child


def _read_value(item: str, text: str, kind: Any) -> Any:
    """The text as it is, unless quoted or a list; the setting's type says what it means."""
    is_list = kind is None or typing.get_origin(kind) is tuple
    if not is_list and not (len(text) > 1 and text[0] == text[-1] and text[0] in "'\""):
        return text
    try:
        value = load_yaml_text(text)
    except _UNREADABLE as error:
        if not is_list:
            return text
        raise ConfigError(f"{item}: its value is not readable: {_problem(error)}") from None
    return "" if value is None else value


def _architecture_there(layers: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, Any]]:
    """The lowest layer: architecture sections and image size copied from `stages.init_from`.

    A folder that is gone is no error here: a run that has started does not need it any more.
    """
    stages: dict[str, Any] = {}
    for _, node in layers:
        found = node.get("stages")
        stages |= found if isinstance(found, dict) else {}
    # Values of a wrong type are told when all is merged.
    start = stages.get("init_from")
    start = local_path(start, "stages.init_from") if start and isinstance(start, str) else None
    networks = stages.get("init_networks", INIT_NETWORKS)
    networks = networks if isinstance(networks, list | tuple) else ()
    files = [start / name for name in ("config.json", "config.yaml")] if start else []
    taken = [name for name in networks if name in INIT_NETWORKS]
    for file in files:
        if file.is_file():
            _, node = _read_file(file)[-1]
            sections = {}
            for section, names in map(architecture_settings, taken):
                found = node.get(section)
                known = found if isinstance(found, dict) else {}
                sections[section] = {name: known[name] for name in names if name in known}
            if "generator" in taken and isinstance(node.get("text_encoder"), dict):
                sections["text_encoder"] = node["text_encoder"]
            data = node.get("data")
            if taken and isinstance(data, dict) and "image_size" in data:
                sections["data"] = {"image_size": data["image_size"]}
            return [(str(file), sections)]
    return []


def _problem(error: Exception) -> str:
    # The first line of a YAML error says what was being read, not what is wrong.
    text = first_line(getattr(error, "problem", None) or error)
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}: {text}" if mark else text


def _literal(node: Any) -> Any:
    """The same with every `${` escaped: texts keep their characters, and nothing is looked up, such
    as a variable of the environment by a file of somebody else."""
    if isinstance(node, dict):
        return {name: _literal(child) for name, child in node.items()}
    if isinstance(node, list | tuple):
        return [_literal(child) for child in node]
    if isinstance(node, str):
        return _INTERPOLATION.sub(lambda found: 2 * found[1] + r"\${", node)
    return node


def _check_value(key: str, value: Any) -> None:
    """Raise ConfigError for values of the right type that no run can use."""
    if isinstance(value, (list, tuple)):
        for item in value:
            _check_value(key, item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}={value} must be finite")
    elif isinstance(value, int) and abs(value) > MAX_WHOLE_SETTING:
        raise ConfigError(f"{key}={value} has more than 64 bits")
    elif isinstance(value, str):
        _check_text(key, value)


def _check_text(key: str, text: str) -> None:
    refuse_user(key, text)
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
        raise ConfigError(f"{key}={text!r} holds control characters, or bytes that are no UTF-8")


def _resolve(config: DictConfig) -> Any:
    """Plain values, `${` as it was before `_literal`."""
    try:
        return OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or ""
        raise ConfigError(f"{key}: {_problem(error)}") from None


def _build(schema: type, node: Any, prefix: str = "") -> Any:
    """Turn merged values back into plain frozen dataclasses, lists into tuples."""
    hints = typing.get_type_hints(schema)
    values: dict[str, Any] = {}
    for item in dataclasses.fields(schema):
        kind, value, key = hints[item.name], node[item.name], prefix + item.name
        if section := named_sections(kind):
            values[item.name] = {
                name: _build(section, child, f"{key}.{name}.") for name, child in value.items()
            }
        elif dataclasses.is_dataclass(kind):
            values[item.name] = _build(typing.cast(type, kind), value, f"{key}.")
        else:
            _check_value(key, value)
            values[item.name] = tuple(value) if isinstance(value, list) else value
    return schema(**values)


def _from_texts(schema: type, node: dict[str, Any]) -> dict[str, Any]:
    """What OmegaConf does not make of texts: choices among numbers, and lists of nothing."""
    hints = typing.get_type_hints(schema)
    return {name: _from_text(hints.get(name), value) for name, value in node.items()}


def _from_text(kind: Any, value: Any) -> Any:
    if isinstance(value, dict) and (section := named_sections(kind)):
        return {name: _from_text(section, child) for name, child in value.items()}
    if isinstance(value, dict) and dataclasses.is_dataclass(kind):
        return _from_texts(typing.cast(type, kind), value)
    if typing.get_origin(kind) is tuple and value == "":
        return []
    choices = {str(one): one for one in typing.get_args(kind)}
    is_choice = typing.get_origin(kind) is typing.Literal and isinstance(value, str)
    return choices.get(value, value) if is_choice else value


def _merge(config: DictConfig, where: str, node: dict[str, Any]) -> DictConfig:
    _check_node(node, where)
    node = _literal(_from_texts(RunConfig, node))
    try:
        return typing.cast(DictConfig, OmegaConf.merge(config, node))
    except ConfigKeyError as error:
        raise ConfigError(f"{where}: {_problem(error)}") from None
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or ""
        raise ConfigError(f"{where}: {key}: {_problem(error)}") from None


def _read_files(files: FilePath | Sequence[FilePath]) -> list[tuple[str, dict[str, Any]]]:
    """All layers of files. A base that several have counts once, where it stands first; a file that
    is named counts where it is named last."""
    layers: dict[Path, tuple[str, dict[str, Any]]] = {}
    for file in [files] if isinstance(files, FilePath) else files:
        *bases, named = _read_file(Path(file))
        for where, node in bases:
            layers.setdefault(_real(Path(where)), (where, node))
        layers.pop(_real(Path(named[0])), None)
        layers[_real(Path(named[0]))] = named
    return list(layers.values())


def load_config(
    files: FilePath | Sequence[FilePath] | None = None, overrides: list[str] | None = None
) -> RunConfig:
    """Merge defaults, run files with their bases in order, and `key=value` overrides.

    Raises:
        ConfigError: an unknown key (with a suggestion), a wrong type, an impossible value.
    """
    layers = _read_files(files or ())
    layers.append(("command line", _read_overrides(overrides or [])))
    config = typing.cast(DictConfig, OmegaConf.structured(RunConfig))
    for where, node in [*_architecture_there(layers), *layers]:
        config = _merge(config, where, node)
    return _build(RunConfig, _resolve(config))


def load_saved_config(path: Path) -> RunConfig:
    """A run's own configuration, under whatever names its version had for the settings.

    Raises:
        ConfigError: see `load_config`.
    """
    [(where, node)] = _read_file(path)
    merged = _merge(OmegaConf.structured(RunConfig), where, _renamed(node))
    return _build(RunConfig, _resolve(merged))


def _renamed(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Sections with today's names; none of the renamed has moved to another section."""
    result = {}
    for name, value in node.items():
        key = f"{prefix}{name}"
        inner = _renamed(value, f"{key}.") if isinstance(value, dict) else value
        result[new_name(key).rpartition(".")[2]] = inner
    return result


def config_from_dict(node: Any) -> RunConfig:
    """The inverse of `to_dict`; settings that are missing have their defaults.

    Raises:
        ConfigError: see `load_config`.
    """
    if not isinstance(node, dict):
        raise ConfigError(f"the saved configuration is {type(node).__name__}, not sections")
    config = typing.cast(DictConfig, OmegaConf.structured(RunConfig))
    merged = _merge(config, "the saved configuration", _renamed(node))
    return _build(RunConfig, _resolve(merged))


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dictionary of a configuration, tuples as lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value

    return plain(dataclasses.asdict(config))


def config_yaml(config: RunConfig) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
