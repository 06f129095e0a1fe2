"""Line charts as inline SVG: axes, stage bands, smoothed lines, values on hover. No scripts."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gear_dist.report.markup import Markup, element, join
from gear_dist.report.numbers import (
    format_count,
    format_ticks,
    format_value,
    linear_ticks,
    log_ticks,
)
from gear_dist.report.panels import Scale, Series, StageSpan

WIDTH, HEIGHT = 400, 246
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 390, 24, 208
_MAX_POINTS = 400
_SMOOTH_FROM = 40
_HOVER_STRIPS = 40
_LOG_RATIO = 30
NUM_COLOURS = 6
_CHARACTER = 7.6  # width of a bold letter, of the widest usual font


class Axis(NamedTuple):
    """Maps values to pixels; `ticks` are values with labels."""

    to_pixel: Callable[[float], float]
    ticks: tuple[tuple[float, str], ...]
    is_log: bool = False


def draw_chart(
    series: Sequence[Series],
    stages: Sequence[StageSpan],
    *,
    title: str,
    scale: Scale = "auto",
    steps: tuple[int, int] | None = None,
    axis_name: str = "step",
) -> tuple[Markup, bool]:
    """Draw series against the step.

    Args:
        series: at least one finite value in all.
        stages: shown as labelled bands.
        title: what a screen reader says first.
        scale: auto takes a logarithmic axis where all values are positive and span a factor of
            30; share is 0 to 100 %.
        steps: range of the step axis; None: the series' own.
        axis_name: what the steps are, where they are something else.

    Returns:
        The SVG and whether its value axis is logarithmic.
    """
    all_steps = [step for line in series for step, _ in line.points]
    first, last = steps or (min(all_steps), max(all_steps))
    across = _step_axis(first, last)
    up = _value_axis([v for line in series for _, v in line.points if v is not None], scale)
    show = _format_share if scale == "share" else format_value
    parts = [
        element("title", title),
        element("desc", _describe(series, show)),
        _draw_bands(stages, across, last),
        _draw_axes(across, up, axis_name),
        *(_draw_line(line, i, across, up, stages) for i, line in enumerate(series)),
        _draw_hover(series, across, show, axis_name),
    ]
    drawing = element(
        "svg", parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title, class_="chart"
    )
    return drawing, up.is_log


def _format_share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _describe(series: Sequence[Series], show: Callable[[float], str]) -> str:
    texts = []
    for line in series:
        finite = [(step, value) for step, value in line.points if value is not None]
        if finite:
            (first, start), (last, end) = finite[0], finite[-1]
            texts.append(f"{line.name}: {show(start)} at step {first}, {show(end)} at step {last}")
    return "; ".join(texts)


def _step_axis(first: int, last: int) -> Axis:
    low, high = (first, last) if last > first else (first - 1, first + 1)

    def to_pixel(step: float) -> float:
        return _LEFT + (step - low) / (high - low) * (_RIGHT - _LEFT)

    ticks = [first] if first == last else linear_ticks(low, high, 6)
    whole = [tick for tick in ticks if tick == int(tick)]
    return Axis(to_pixel, tuple((tick, format_count(tick)) for tick in whole))


def _value_axis(values: Sequence[float], scale: Scale) -> Axis:
    low, high = min(values), max(values)
    if scale == "share":
        return _linear_axis(0.0, 1.0, factor=100)
    if scale == "auto" and low > 0 and high / low >= _LOG_RATIO:
        return _log_axis(low, high)
    span = high - low or abs(high) or 1.0
    bottom, top = low - 0.06 * span, high + 0.06 * span
    if low >= 0 and low < 0.4 * high:
        bottom = 0.0
    return _linear_axis(bottom, top)


def _linear_axis(low: float, high: float, factor: float = 1) -> Axis:
    """`factor` multiplies what the labels say."""

    def to_pixel(value: float) -> float:
        return _BOTTOM - (value - low) / (high - low) * (_BOTTOM - _TOP)

    ticks = linear_ticks(low, high)
    labels = format_ticks([factor * tick for tick in ticks])
    return Axis(to_pixel, tuple(zip(ticks, labels, strict=True)))


def _log_axis(low: float, high: float) -> Axis:
    low, high = low / 1.15, high * 1.15

    def to_pixel(value: float) -> float:
        share = math.log(value / low) / math.log(high / low)
        return _BOTTOM - share * (_BOTTOM - _TOP)

    return Axis(to_pixel, tuple((tick, format_value(tick)) for tick in log_ticks(low, high)), True)


def _draw_bands(stages: Sequence[StageSpan], across: Axis, last: int) -> Markup:
    """A band from the last record of the stage before to the stage's own last record."""
    bands = []
    for i, stage in enumerate(stages):
        left = max(_LEFT, across.to_pixel(stages[i - 1].last)) if i else _LEFT
        end = stage.last if i + 1 < len(stages) else max(stage.last, last)
        width = min(_RIGHT, across.to_pixel(end)) - left
        if width <= 0:
            continue
        bands.append(
            element(
                "rect",
                x=f"{left:.1f}",
                y=_TOP - 18,
                width=f"{width:.1f}",
                height=_BOTTOM - _TOP + 18,
                class_=f"band band-{i % 3}",
            )
        )
        if width > 8 * len(stage.name):
            bands.append(_text(left + 5, _TOP - 6, stage.name, "band-name", "start"))
    return join(bands)


def _draw_axes(across: Axis, up: Axis, name: str) -> Markup:
    parts = []
    for value, label in up.ticks:
        y = f"{up.to_pixel(value):.1f}"
        parts.append(element("line", x1=_LEFT, x2=_RIGHT, y1=y, y2=y, class_="rule"))
        parts.append(_text(_LEFT - 7, up.to_pixel(value) + 4, label, "tick", "end"))
    for step, label in across.ticks:
        x = f"{across.to_pixel(step):.1f}"
        parts.append(element("line", x1=x, x2=x, y1=_BOTTOM, y2=_BOTTOM + 4, class_="axis"))
        parts.append(_text(across.to_pixel(step), _BOTTOM + 17, label, "tick", "middle"))
    parts.append(element("line", x1=_LEFT, x2=_RIGHT, y1=_BOTTOM, y2=_BOTTOM, class_="axis"))
    parts.append(_text((_LEFT + _RIGHT) / 2, HEIGHT - 4, name, "axis-name", "middle"))
    return join(parts)


def _draw_line(
    line: Series, index: int, across: Axis, up: Axis, stages: Sequence[StageSpan]
) -> Markup:
    """The values, faint under a smoothed line where there are many; a dot at the newest."""
    colour = f"c{index % NUM_COLOURS}"
    finite = [(step, value) for step, value in line.points if value is not None]
    raw = _path(thin_out(line.points), across, up)
    parts = []
    if len(finite) >= _SMOOTH_FROM:
        parts.append(element("path", d=raw, class_=f"raw {colour}"))
        finite = smooth(finite, {stage.first for stage in stages})
        raw = _path(thin_out(finite), across, up)
    parts.append(element("path", d=raw, class_=f"line {colour}"))
    if finite:
        x, y = across.to_pixel(finite[-1][0]), up.to_pixel(finite[-1][1])
        parts.append(element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=3, class_=f"dot {colour}"))
    return join(parts)


def _path(points: Sequence[tuple[int, float | None]], across: Axis, up: Axis) -> str:
    commands, pen_is_down = [], False
    for step, value in points:
        if value is not None:
            letter = "L" if pen_is_down else "M"
            commands.append(f"{letter}{across.to_pixel(step):.1f} {up.to_pixel(value):.1f}")
        pen_is_down = value is not None
    return "".join(commands)


def smooth(points: Sequence[tuple[int, float]], breaks: set[int]) -> list[tuple[int, float]]:
    """Centred mean over about a twenty-fifth of the points, never across a step in `breaks`."""
    reach = max(2, len(points) // 50)
    starts = [i for i, (step, _) in enumerate(points) if i == 0 or step in breaks]
    result = []
    for start, end in zip(starts, [*starts[1:], len(points)], strict=True):
        for i in range(start, end):
            near = points[max(start, i - reach) : min(end, i + reach + 1)]
            result.append((points[i][0], sum(value for _, value in near) / len(near)))
    return result


def thin_out(
    points: Sequence[tuple[int, float | None]], limit: int = _MAX_POINTS
) -> list[tuple[int, float | None]]:
    """At most about `limit` points: each bucket's least and greatest, so that spikes stay."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(2 * len(points) / limit)
    result: list[tuple[int, float | None]] = []
    for start in range(0, len(points), size):
        bucket = points[start : start + size]
        finite = [point for point in bucket if point[1] is not None]
        if len(finite) < len(bucket):
            result.append((bucket[0][0], None))
        if finite:
            ends = {min(finite, key=_value), max(finite, key=_value)}
            result.extend(sorted(ends))
    return result


def _value(point: tuple[int, float | None]) -> float:
    return point[1] if point[1] is not None else math.nan


def _draw_hover(
    series: Sequence[Series], across: Axis, show: Callable[[float], str], axis_name: str
) -> Markup:
    """Invisible strips over the chart; the one under the pointer shows its step's values."""
    tables = [dict(line.points) for line in series]
    names = _short_names([line.name for line in series])
    steps = sorted({step for table in tables for step in table})
    if len(steps) > _HOVER_STRIPS:
        stride = (len(steps) - 1) / (_HOVER_STRIPS - 1)
        steps = [steps[round(i * stride)] for i in range(_HOVER_STRIPS)]
    edges = [across.to_pixel(step) for step in steps]
    strips = []
    for i, step in enumerate(steps):
        left = (edges[i - 1] + edges[i]) / 2 if i else _LEFT
        right = (edges[i] + edges[i + 1]) / 2 if i + 1 < len(edges) else _RIGHT
        strip = element(
            "rect", x=f"{left:.1f}", y=_TOP, width=f"{right - left:.1f}", height=_BOTTOM - _TOP
        )
        rows = [
            (f"c{k % NUM_COLOURS}", f"{names[k]} {_show(tables[k][step], show)}")
            for k in range(len(series))
            if step in tables[k]
        ]
        strips.append(
            element("g", strip, _tip(f"{axis_name} {step:,}", edges[i], rows), class_="strip")
        )
    return join(strips)


def _short_names(names: list[str]) -> list[str]:
    """grad_norm_tokenizer, grad_norm_generator: without what all have in common."""
    words = [name.split("_") for name in names]
    columns = enumerate(zip(*words, strict=False))
    shared = next((i for i, column in columns if len(set(column)) > 1), 0)
    return ["_".join(parts[shared:]) for parts in words]


def _show(value: float | None, show: Callable[[float], str]) -> str:
    return "not finite" if value is None else show(value)


def _tip(head: str, x: float, rows: list[tuple[str, str]]) -> Markup:
    width = 14 + _CHARACTER * max(len(head), *(len(text) for _, text in rows))
    height = 9 + 15 * (len(rows) + 1)
    left = x + 8 if x + 8 + width < WIDTH else max(0, x - 8 - width)
    box = element("rect", x=f"{left:.1f}", y=_TOP + 2, width=f"{width:.1f}", height=height, rx=5)
    lines = [_text(left + 7, _TOP + 17, head, "tip-step", "start")]
    for i, (colour, text) in enumerate(rows):
        lines.append(_text(left + 7, _TOP + 32 + 15 * i, text, f"tip-text {colour}", "start"))
    needle = element("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=_TOP, y2=_BOTTOM, class_="needle")
    return element("g", needle, box, lines, class_="tip", aria_hidden="true")


def _text(x: float, y: float, text: str, class_: str, anchor: str) -> Markup:
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", class_=class_, text_anchor=anchor)
