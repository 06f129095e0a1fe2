"""The study as a table in Markdown and curves in one SVG file."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from gear_dist.report.curves import HEIGHT, NUM_COLOURS, WIDTH, draw_chart
from gear_dist.report.markup import Markup, element, join
from gear_dist.report.panels import Series
from gear_dist.reproduce.arms import ARMS, BASELINE
from gear_dist.reproduce.study import Point

Points = Mapping[str, Sequence[Sequence[Point]]]
"""Of each seed, by arm."""
_COLOURS = ("#2257bf", "#c04a00", "#0b7f70", "#8636c2", "#b8256b", "#6b6b00")
_STYLE = (
    ".chart { overflow: visible; } svg { font-family: system-ui, sans-serif; }"
    "text { font-size: 12.5px; fill: #555; }"
    ".title { font-size: 15px; font-weight: 600; fill: #222; } .rule { stroke: #ddd; }"
    ".axis { stroke: #555; } .line { fill: none; stroke: currentColor; stroke-width: 2; }"
    ".dot { fill: currentColor; } .strip > rect { fill: transparent; }"
    ".tip { visibility: hidden; }"
    + "".join(f".c{i} {{ color: {colour}; }}" for i, colour in enumerate(_COLOURS))
)
_TITLE_HEIGHT, _GAP, _LEGEND_LINE = 26, 24, 20
_OFF_SCALE = 3.0
"""Arms that end at this many times the best one's distance would flatten all others' curves."""


class Column(NamedTuple):
    """One measured quantity at the end of a run."""

    title: str
    read: Callable[[Point], float | None]
    form: str


COLUMNS = (
    Column("Frechet", lambda point: point.frechet, "{:.1f}"),
    Column("asked class, %", lambda point: 100 * point.accuracy, "{:.1f}"),
    Column("PSNR, dB", lambda point: point.psnr_db, "{:.2f}"),
    Column(
        "codes used, %",
        lambda point: None if point.codebook_usage is None else 100 * point.codebook_usage,
        "{:.1f}",
    ),
    Column("cross-entropy", lambda point: point.cross_entropy, "{:.3f}"),
    Column("TFLOP", lambda point: point.teraflops, "{:.1f}"),
    Column("s", lambda point: point.seconds, "{:.0f}"),
)


def draw_table(points: Points) -> str:
    """Each arm at its end: the mean over seeds, and the seeds' least and greatest."""
    lines = [
        "| arm | steps | " + " | ".join(column.title for column in COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for name, seeds in points.items():
        last = [run[-1] for run in seeds]
        cells = [_cell(column, last) for column in COLUMNS]
        lines.append(f"| {ARMS[name].text} | {last[0].step} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(column: Column, points: Sequence[Point]) -> str:
    values = [value for point in points if (value := column.read(point)) is not None]
    if not values:
        return "-"
    mean = column.form.format(statistics.mean(values))
    if len(values) == 1 or column.title in ("TFLOP", "s"):
        return mean
    return f"{mean} ({column.form.format(min(values))}-{column.form.format(max(values))})"


def draw_reached(points: Points) -> str:
    """When each arm is first as good as the baseline's end, by the mean of the seeds."""
    if BASELINE not in points:
        return ""
    goal = _mean_curve(points[BASELINE], lambda point: point.frechet)[-1][1]
    lines = [
        f"| arm | steps to the baseline's last Frechet distance ({goal:.1f}) | TFLOP to it |",
        "|---|---|---|",
    ]
    for name, seeds in points.items():
        curve = _mean_curve(seeds, lambda point: point.frechet)
        index = next((i for i, (_, value) in enumerate(curve) if value <= goal), None)
        cells = ("not reached", "-")
        if index is not None:
            cells = (str(curve[index][0]), f"{seeds[0][index].teraflops:.1f}")
        lines.append(f"| {ARMS[name].text} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def _mean_curve(
    seeds: Sequence[Sequence[Point]], read: Callable[[Point], float]
) -> list[tuple[int, float]]:
    """Means over the seeds at each step."""
    return [(at[0].step, statistics.mean(map(read, at))) for at in zip(*seeds, strict=True)]


def draw_curves(points: Points) -> str:
    """Frechet distance and accuracy against steps and arithmetic; means of the seeds.

    Arms that are far worse than the others are named, not drawn.
    """
    last = {name: _mean_curve(seeds, lambda p: p.frechet)[-1][1] for name, seeds in points.items()}
    drawn = [name for name in points if last[name] <= _OFF_SCALE * min(last.values())]
    groups = [
        [name for name in drawn if (ARMS[name].start in points) == is_later]
        for is_later in (False, True)
    ]
    rows = [_row(points, names) for names in groups if names]
    top, parts = 0.0, []
    for row, height in rows:
        parts.append(element("g", row, transform=f"translate(0 {top:g})"))
        top += height
    if off_scale := [ARMS[name].text for name in points if name not in drawn]:
        parts.append(element("text", f"off the scale: {'; '.join(off_scale)}", x=8, y=top))
        top += _GAP
    width = 3 * (WIDTH + _GAP)
    background = element("rect", width=width, height=top, fill="#fff")
    return element(
        "svg",
        element("style", Markup(_STYLE)),
        background,
        parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {top:g}",
        role="img",
    )


def _row(points: Points, names: Sequence[str]) -> tuple[Markup, float]:
    charts = (
        ("Frechet distance by steps", "step", lambda p: p.step, lambda p: p.frechet),
        ("asked class, % by steps", "step", lambda p: p.step, lambda p: 100 * p.accuracy),
        ("Frechet distance by GFLOP", "GFLOP", lambda p: 1e3 * p.teraflops, lambda p: p.frechet),
    )
    parts = []
    for i, (title, axis_name, across, up) in enumerate(charts):
        series = [_series(name, points[name], across, up) for name in names]
        chart, _ = draw_chart(series, (), title=title, scale="linear", axis_name=axis_name)
        frame = element(
            "svg", chart, y=_TITLE_HEIGHT, width=WIDTH, height=HEIGHT, overflow="visible"
        )
        heading = element("text", title, x=8, y=18, class_="title")
        parts.append(element("g", heading, frame, transform=f"translate({i * (WIDTH + _GAP)} 0)"))
    top = _TITLE_HEIGHT + HEIGHT + _LEGEND_LINE
    for i, name in enumerate(names):
        y = top + i * _LEGEND_LINE
        swatch = element("rect", x=8, y=y - 5, width=16, height=4, fill=_COLOURS[i % NUM_COLOURS])
        parts.append(join(swatch, element("text", ARMS[name].text, x=32, y=y)))
    return join(parts), top + len(names) * _LEGEND_LINE + _GAP


def _series(
    name: str,
    seeds: Sequence[Sequence[Point]],
    across: Callable[[Point], float],
    up: Callable[[Point], float],
) -> Series:
    curve = _mean_curve(seeds, up)
    points = zip(seeds[0], curve, strict=True)
    return Series(name, tuple((round(across(point)), value) for point, (_, value) in points))
