"""The parts of the page below its header. Each returns None where the run has nothing for it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gear_dist.config.compare import default_settings
from gear_dist.report.curves import NUM_COLOURS, draw_chart
from gear_dist.report.markup import Markup, element, join
from gear_dist.report.numbers import format_value
from gear_dist.report.panels import GROUPS, Panel, Series, StageSpan
from gear_dist.report.pictures import embed_picture, spread
from gear_dist.report.tables import draw_table, show_value, with_units
from gear_dist.runs.run_folder import Grid

_HISTORY_GRIDS = 12
_GRID_TITLES = {"samples": "Samples", "reconstruction": "Reconstructions"}
_GRID_TEXTS = {
    "samples": "Images that the generator makes, decoded by the tokenizer",
    "reconstruction": "Rows of validation images, each above its reconstruction",
}


def draw_latest_grids(grids: Sequence[Grid]) -> Markup | None:
    """The newest grid of each kind, samples first."""
    newest = {grid.kind: grid for grid in grids}
    kinds = sorted(newest, key=lambda kind: (kind != "samples", kind))
    figures = [figure for kind in kinds if (figure := _draw_figure(newest[kind], small=False))]
    return element("div", figures, class_="grids") if figures else None


def draw_history(grids: Sequence[Grid]) -> Markup | None:
    """How the grids changed: a strip for each kind, evenly thinned in long runs."""
    strips = []
    for kind in sorted({grid.kind for grid in grids}, reverse=True):
        own = [grid for grid in grids if grid.kind == kind]
        if len(own) < 2:
            continue
        shown = [own[i] for i in spread(len(own), _HISTORY_GRIDS)]
        figures = [figure for grid in shown if (figure := _draw_figure(grid, small=True))]
        title = _GRID_TITLES.get(kind, kind)
        count = f" ({len(shown)} of {len(own)})" if len(shown) < len(own) else ""
        strips.append(element("h3", title, count))
        label = f"{title} by step; scroll sideways"
        strips.append(
            element("div", figures, class_="strip-row", role="region", tabindex=0, aria_label=label)
        )
    return join(strips) if strips else None


def _draw_figure(grid: Grid, *, small: bool) -> Markup | None:
    picture = embed_picture(grid.path, small=small)
    if picture is None:
        return None
    title = _GRID_TITLES.get(grid.kind, grid.kind)
    text = f"{_GRID_TEXTS.get(grid.kind, title)}, after step {grid.step}"
    image = element(
        "img",
        src=picture.uri,
        width=picture.width,
        height=picture.height,
        alt=text,
        loading="lazy" if small else None,
    )
    caption = f"step {grid.step:,}" if small else f"{title} after step {grid.step:,}"
    note = None if small else element("small", _GRID_TEXTS.get(grid.kind, ""))
    return element("figure", image, element("figcaption", caption, note))


def draw_curves(
    series: Mapping[Panel, list[Series]],
    stages: Sequence[StageSpan],
    records: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
) -> Markup | None:
    """All panels by group, on one step axis."""
    if not series:
        return None
    first, last = records[0]["step"], records[-1]["step"]
    span = (0 if first <= last / 10 else first, last)
    texts = _panel_texts(records, config)
    parts: list[Markup] = []
    for group in GROUPS:
        panels = [panel for panel in series if panel.group == group]
        if not panels:
            continue
        drawn = [_draw_panel(panel, series[panel], stages, span, texts) for panel in panels]
        body = join(element("h3", group), element("div", drawn, class_="panels"))
        parts.append(element("div", body))
    return join(parts)


def _panel_texts(records: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> dict[str, str]:
    """What a panel's note may name: the window of the codebook usage, the uniform guess."""
    windows = [record.get("usage_window_tokens") for record in records]
    window = next((w for w in reversed(windows) if isinstance(w, int | float)), None)
    window = window or config.get("log.usage_window_tokens", 0)
    codes = config.get("tokenizer.codebook_size", 0)
    uniform = format_value(math.log(codes)) if isinstance(codes, int) and codes > 0 else "log K"
    return {"window": f"{window:,.0f}", "uniform": uniform}


def _draw_panel(
    panel: Panel,
    lines: Sequence[Series],
    stages: Sequence[StageSpan],
    span: tuple[int, int],
    texts: Mapping[str, str],
) -> Markup:
    """A chart with its title, note and a legend that gives the newest values."""
    chart, is_log = draw_chart(
        lines, stages, title=f"{panel.part}: {panel.title}", scale=panel.scale, steps=span
    )
    unit = panel.unit + (", log scale" if panel.unit and is_log else "log scale" if is_log else "")
    small = element("small", f" {unit}") if unit else None
    title = element("h4", element("span", panel.part, class_="part"), panel.title, small)
    legend = [_draw_key(line, i, panel) for i, line in enumerate(lines)]
    note = element("p", panel.note.format(**texts), class_="note") if panel.note else None
    return element("article", title, element("ul", legend, class_="legend"), chart, note)


def _draw_key(line: Series, index: int, panel: Panel) -> Markup:
    last = line.last
    value = "-" if last is None else format_value(last)
    if panel.scale == "share" and last is not None:
        value = f"{100 * last:.1f} %"
    swatch = element("i", class_=f"swatch c{index % NUM_COLOURS}", aria_hidden="true")
    return element("li", swatch, element("code", line.name), " ", element("b", value))


def draw_settings(config: Mapping[str, Any]) -> Markup:
    """Settings that differ from the defaults, then all of them, the different ones marked."""
    defaults = default_settings(config)
    changed = [key for key in config if key not in defaults or config[key] != defaults[key]]
    columns = ("Setting", "Value", "Default")
    rows = [_setting_row(key, config[key], defaults, mark=False) for key in changed]
    every = [_setting_row(key, config[key], defaults, mark=key in changed) for key in config]
    intro = f"{len(changed)} of {len(config)} settings differ from the defaults."
    return join(
        element("p", intro),
        draw_table("Settings that differ", columns, rows) if rows else None,
        element(
            "details",
            element("summary", f"All {len(config)} settings"),
            draw_table("All settings; different ones are marked", columns, every),
        ),
    )


def _setting_row(key: str, value: Any, defaults: Mapping[str, Any], *, mark: bool) -> Markup:
    default = show_value(defaults[key]) if key in defaults else "(not in this version)"
    return element(
        "tr",
        element("th", element("code", key.replace(".", ".\N{ZERO WIDTH SPACE}")), scope="row"),
        element("td", element("mark", show_value(value)) if mark else show_value(value)),
        element("td", default, class_="default"),
        class_="changed" if mark else None,
    )


def draw_environment(environment: Mapping[str, Any]) -> Markup | None:
    """environment.json as a table, one row a part."""
    if not environment:
        return None
    rows = [
        element("tr", element("th", key.replace("_", " "), scope="row"), _draw_fact(value))
        for key, value in environment.items()
    ]
    return draw_table("Environment of the run", ("Part", "Facts"), rows)


def _draw_fact(value: Any) -> Markup:
    if not isinstance(value, Mapping):
        return element("td", show_value(value))
    items = [
        element("li", element("small", f"{name.replace('_', ' ')} "), show_value(item))
        for name, item in with_units(value).items()
    ]
    return element("td", element("ul", items, class_="facts"))
