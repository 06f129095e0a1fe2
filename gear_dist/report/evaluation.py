"""The evaluation as tables: generated images with and without guidance, and reconstructions.

Reads what `gear_dist.evaluation.protocol.Evaluation.to_json` writes. A part that is missing, or of
another version's form, is left out of the tables; what no table shows is listed as it stands.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gear_dist.config.compare import flatten
from gear_dist.report.markup import Markup, element, join
from gear_dist.report.numbers import format_value
from gear_dist.report.tables import draw_table, show_value

_PARTS = ("frechet_name", "guided", "unguided", "reconstruction", "judge", "warnings")
_FIGURES = ("chance_accuracy", "num_generated", "real_frechet")


def draw_evaluation(evaluation: Mapping[str, Any] | None) -> Markup | None:
    """All of evaluation.json; None where there is nothing."""
    if not evaluation:
        return None
    rest = {key: value for key, value in evaluation.items() if key not in (*_PARTS, *_FIGURES)}
    parts = [
        _draw_generation(evaluation),
        _draw_reconstruction(_part(evaluation, "reconstruction")),
        _draw_judge(evaluation),
        _draw_rest(rest),
    ]
    return element("div", [part for part in parts if part], class_="stack")


def list_tiles(evaluation: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    """Label, value and unit of the numbers that matter most."""
    evaluation = evaluation or {}
    tiles = []
    psnr = _number(_part(evaluation, "reconstruction"), "psnr_db")
    if psnr is not None:
        tiles.append(("Reconstruction", f"{psnr:.1f}", "dB PSNR"))
    accuracy = _number(_part(_part(evaluation, "guided"), "accuracy"), "median")
    if accuracy is not None:
        tiles.append(("Asked class seen", f"{100 * accuracy:.0f}", "% of samples"))
    return tiles


def _draw_generation(evaluation: Mapping[str, Any]) -> Markup | None:
    arms = [_part(evaluation, name) for name in ("guided", "unguided")]
    arms = [arm for arm in arms if arm]
    if not arms:
        return None
    columns = ["Generated images", *(_arm_title(arm) for arm in arms), "Compare with"]
    chance = _number(evaluation, "chance_accuracy")
    ceiling = _number(_part(evaluation, "reconstruction"), "accuracy")
    limits = [("chance", chance), ("reconstructions", ceiling)]
    notes = [f"{name} {_percent(value)}" for name, value in limits if value is not None]
    real = _number(evaluation, "real_frechet")
    name = str(evaluation.get("frechet_name") or "Frechet distance")
    rows = [
        _row("Asked class recognised", [_seeds(arm, "accuracy", _percent) for arm in arms], notes),
        _row(
            name[:1].upper() + name[1:],
            [_seeds(arm, "frechet", format_value) for arm in arms],
            [f"real images {format_value(real)}"] if real is not None else [],
        ),
    ]
    count = evaluation.get("num_generated")
    text = f"Median over seeds, each seed's value below it; {count} images a seed. "
    return join(
        draw_table("Generated images", columns, rows),
        element("p", text, "A higher share and a smaller distance are better.", class_="note"),
    )


def _arm_title(arm: Mapping[str, Any]) -> str:
    guidance = _number(arm, "guidance")
    return "No guidance" if guidance == 1 else f"Guidance {show_value(guidance)}"


def _seeds(arm: Mapping[str, Any], name: str, show: Callable[[float], str]) -> Markup:
    figures = _part(arm, name)
    median, values = _number(figures, "median"), figures.get("values")
    if median is None:
        return join("not measured")
    each = [show(v) for v in values if isinstance(v, int | float)] if values else []
    return join(element("b", show(median)), element("small", ", ".join(each), class_="seeds"))


def _draw_reconstruction(found: Mapping[str, Any]) -> Markup | None:
    formats: Sequence[tuple[str, str, Callable[[float], str]]] = (
        ("psnr_db", "PSNR, mean over images", lambda v: f"{v:.2f} dB"),
        ("ssim", "SSIM, mean over images", lambda v: f"{v:.3f}"),
        ("accuracy", "Class still recognised", _percent),
    )
    rows = []
    for key, title, show in formats:
        value = _number(found, key)
        if value is not None:
            rows.append(_row(title, [element("b", show(value))]))
    if not rows:
        return None
    count = found.get("num_images")
    images = f"{count:,} validation images" if isinstance(count, int) else "validation images"
    return draw_table("Reconstructions", (f"Reconstructions of {images}", "Value"), rows)


def _draw_judge(evaluation: Mapping[str, Any]) -> Markup | None:
    """Who recognised the classes, and how far it can be trusted."""
    lines = []
    accuracy = _number(_part(evaluation, "judge"), "accuracy")
    if accuracy is not None:
        lines.append(
            "Classes are recognised by a classifier trained on this corpus's real images, right "
            f"on {_percent(accuracy)} of the validation images."
        )
    warnings = evaluation.get("warnings")
    lines += [str(text) for text in warnings] if isinstance(warnings, list) else []
    return element("ul", [element("li", line) for line in lines], class_="note") if lines else None


def _draw_rest(rest: Mapping[str, Any]) -> Markup | None:
    rows = [_row(name, [join(show_value(value))]) for name, value in flatten(rest).items()]
    return draw_table("Further results", ("Measure", "Value"), rows) if rows else None


def _row(title: str, cells: Sequence[Markup], notes: Sequence[str] | None = None) -> Markup:
    last = element("td", ", ".join(notes), class_="compare") if notes is not None else None
    return element(
        "tr", element("th", title, scope="row"), [element("td", cell) for cell in cells], last
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _part(node: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = node.get(key)
    return part if isinstance(part, Mapping) else {}


def _number(node: Mapping[str, Any], key: str) -> float | None:
    value = node.get(key)
    return float(value) if isinstance(value, int | float) else None
