"""Contents of the report's sections below the header; empty if the run has no data for one."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from gear_dist.config.compare import default_settings
from gear_dist.report.curves import NUM_COLOURS, draw_chart
from gear_dist.report.numbers import format_value
from gear_dist.report.panels import GROUPS, Panel, Series, StageSpan
from gear_dist.report.pictures import Picture, embed_picture, spread
from gear_dist.report.values import show_value, with_units
from gear_dist.runs.licenses import training_licenses
from gear_dist.runs.run_folder import Grid

_HISTORY_GRIDS = 12
_GRID_TITLES = {"samples": "Samples", "reconstruction": "Reconstructions"}
_GRID_TEXTS = {
    "samples": "Images that the generator makes, decoded by the tokenizer",
    "reconstruction": "Rows of validation images, each above its reconstruction",
}


class Figure(NamedTuple):
    """A grid: `text` for those who cannot see it; a small one goes without its note."""

    picture: Picture
    text: str
    caption: str
    note: str
    small: bool


class Strip(NamedTuple):
    """Grids of one kind by step."""

    title: str
    extent: str
    figures: list[Figure]


class Key(NamedTuple):
    """A line of a legend: the number of its colour, the metric, its newest value."""

    colour: int
    name: str
    value: str


class Chart(NamedTuple):
    """A panel as it is shown."""

    part: str
    title: str
    unit: str
    legend: list[Key]
    drawing: Markup
    note: str


class SettingRow(NamedTuple):
    """A setting as text, and whether it differs from its default."""

    name: str
    value: str
    default: str
    changed: bool


def list_latest_grids(grids: Sequence[Grid]) -> list[Figure]:
    """The newest grid of each kind, samples first."""
    newest = {grid.kind: grid for grid in grids}
    kinds = sorted(newest, key=lambda kind: (kind != "samples", kind))
    return [figure for kind in kinds if (figure := _make_figure(newest[kind], small=False))]


def list_strips(grids: Sequence[Grid]) -> list[Strip]:
    """How the grids changed: a strip for each kind, evenly thinned in long runs."""
    strips = []
    for kind in sorted({grid.kind for grid in grids}, reverse=True):
        own = [grid for grid in grids if grid.kind == kind]
        if len(own) < 2:
            continue
        shown = [own[i] for i in spread(len(own), _HISTORY_GRIDS)]
        figures = [figure for grid in shown if (figure := _make_figure(grid, small=True))]
        extent = f" ({len(shown)} of {len(own)})" if len(shown) < len(own) else ""
        strips.append(Strip(_GRID_TITLES.get(kind, kind), extent, figures))
    return strips


def _make_figure(grid: Grid, *, small: bool) -> Figure | None:
    picture = embed_picture(grid.path, small=small)
    if picture is None:
        return None
    title = _GRID_TITLES.get(grid.kind, grid.kind)
    text = f"{_GRID_TEXTS.get(grid.kind, title)}, after step {grid.step}"
    caption = f"step {grid.step:,}" if small else f"{title} after step {grid.step:,}"
    return Figure(picture, text, caption, _GRID_TEXTS.get(grid.kind, ""), small)


def list_charts(
    series: Mapping[Panel, list[Series]],
    stages: Sequence[StageSpan],
    records: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
) -> list[tuple[str, list[Chart]]]:
    """All panels by group, on one step axis."""
    if not series:
        return []
    first, last = records[0]["step"], records[-1]["step"]
    span = (0 if first <= last / 10 else first, last)
    texts = _panel_texts(records, config)
    groups = []
    for group in GROUPS:
        panels = [panel for panel in series if panel.group == group]
        if panels:
            charts = [_make_chart(panel, series[panel], stages, span, texts) for panel in panels]
            groups.append((group, charts))
    return groups


def _panel_texts(records: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> dict[str, str]:
    """What a panel's note may name: the window of the codebook usage, the uniform guess."""
    windows = [record.get("usage_window_tokens") for record in records]
    window = next((w for w in reversed(windows) if isinstance(w, int | float)), None)
    window = window or config.get("log.usage_window_tokens", 0)
    codes = config.get("tokenizer.codebook_size", 0)
    uniform = format_value(math.log(codes)) if isinstance(codes, int) and codes > 0 else "log K"
    return {"window": f"{window:,.0f}", "uniform": uniform}


def _make_chart(
    panel: Panel,
    lines: Sequence[Series],
    stages: Sequence[StageSpan],
    span: tuple[int, int],
    texts: Mapping[str, str],
) -> Chart:
    drawing, is_log = draw_chart(
        lines, stages, title=f"{panel.part}: {panel.title}", scale=panel.scale, steps=span
    )
    unit = ", ".join(filter(None, (panel.unit, "log scale" if is_log else "")))
    legend = [
        Key(i % NUM_COLOURS, line.name, _show_last(line, panel)) for i, line in enumerate(lines)
    ]
    return Chart(panel.part, panel.title, unit, legend, drawing, panel.note.format(**texts))


def _show_last(line: Series, panel: Panel) -> str:
    if line.last is None:
        return "-"
    return f"{100 * line.last:.1f} %" if panel.scale == "share" else format_value(line.last)


def list_licences(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Licences of the training images with their counts; empty where the corpora state none."""
    return [(name, f"{count:,}") for name, count in training_licenses(environment)]


def list_setting_rows(config: Mapping[str, Any]) -> list[SettingRow]:
    """All settings, in the order of the configuration."""
    defaults = default_settings(config)
    return [
        SettingRow(
            key.replace(".", ".\N{ZERO WIDTH SPACE}"),
            show_value(value),
            show_value(defaults[key]) if key in defaults else "(not in this version)",
            key not in defaults or value != defaults[key],
        )
        for key, value in config.items()
    ]


def list_environment(
    environment: Mapping[str, Any],
) -> list[tuple[str, str | list[tuple[str, str]]]]:
    """Parts of environment.json: each a text, or names with texts."""
    return [(key.replace("_", " "), _list_facts(value)) for key, value in environment.items()]


def _list_facts(value: Any) -> str | list[tuple[str, str]]:
    if not isinstance(value, Mapping):
        return show_value(value)
    facts = with_units(value).items()
    return [(name.replace("_", " "), show_value(item)) for name, item in facts]
