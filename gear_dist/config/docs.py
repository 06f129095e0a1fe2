"""Renders docs/configuration.md from the dataclasses of the settings; `make docs` writes it."""

import ast
import dataclasses
import inspect
import textwrap
import typing
from typing import Any, NamedTuple

from gear_dist.config import schema as config
from gear_dist.config.loading import ANY_NAME, named_sections

_HEAD = """\
# Configuration

Every setting of `gear-dist train`, written by `make docs` from gear_dist/config. A run file is YAML
with these sections. A command takes several; later ones override earlier ones, and
`section.name=value` on the command line overrides them all. `base: [other.yaml]` in a run file
builds on another one. A misspelt name is an error with a suggestion. RUN/config.yaml records what a
run used. A setting's type decides how its value is read: text keeps its characters (`run.name=010`,
`on` and `1.10` stay as written), numbers are decimal, and lists are `[a, b]`. Quotes around a value
are removed.
"""


class Setting(NamedTuple):
    """One setting; `meaning` is empty where the schema has no line under it."""

    name: str
    kind: str
    default: str
    meaning: str


def field_lines(schema: type) -> dict[str, str]:
    """The string under each field of a dataclass, on one line; Python itself drops them."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(schema))).body[0]
    assert isinstance(tree, ast.ClassDef)
    lines = {}
    for node, after in zip(tree.body, tree.body[1:], strict=False):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            lines[node.target.id] = " ".join(str(after.value.value).split())
    return lines


def list_settings(schema: type = config.RunConfig, prefix: str = "") -> list[Setting]:
    """All settings of a section and of the sections in it."""
    settings = []
    hints, meanings = typing.get_type_hints(schema), field_lines(schema)
    for field in dataclasses.fields(schema):
        name, kind = f"{prefix}{field.name}", hints[field.name]
        if section := named_sections(kind):
            settings += list_settings(section, f"{name}.{ANY_NAME}.")
            continue
        if dataclasses.is_dataclass(kind):
            settings += list_settings(typing.cast(type, kind), f"{name}.")
            continue
        meaning = meanings.get(field.name, "")
        settings.append(Setting(name, _show_kind(kind), _show_default(field.default), meaning))
    return settings


def _show_kind(kind: Any) -> str:
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return " \\| ".join(map(str, arguments))
    if typing.get_origin(kind) is tuple:
        return f"list of {arguments[0].__name__}"
    return kind.__name__


def _show_default(value: Any) -> str:
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value != "" else "(empty)"


def render() -> str:
    """The page as Markdown: one table a section."""
    sections: dict[str, list[Setting]] = {}
    for setting in list_settings():
        sections.setdefault(setting.name.partition(".")[0], []).append(setting)
    parts, texts = [_HEAD], field_lines(config.RunConfig)
    for section, settings in sections.items():
        text = f"{texts[section]}\n\n" if section in texts else ""
        head = "| setting | type | default | meaning |\n|---|---|---|---|"
        parts.append(f"## {section}\n\n{text}{head}")
        for item in settings:
            meaning = item.meaning.replace("|", "\\|")
            parts.append(f"| `{item.name}` | {item.kind} | {item.default} | {meaning} |")
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    print(render(), end="")
