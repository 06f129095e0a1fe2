"""The evaluation as tables: generated images with and without guidance, and reconstructions.

Reads what `gear_dist.evaluation.protocol.Evaluation.to_json` writes. A part that is missing, or of
another version's form, is left out of the tables; what no table shows is listed as it stands.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from gear_dist.config.compare import flatten
from gear_dist.report.numbers import format_value
from gear_dist.report.values import show_value

_PARTS = ("frechet_name", "guided", "unguided", "reconstruction", "judge", "warnings")
_FIGURES = ("chance_accuracy", "num_generated", "real_frechet")


class Tile(NamedTuple):
    """A number at the top of the page."""

    label: str
    value: str
    unit: str = ""


class Cell(NamedTuple):
    """The median over seeds, and each seed's value."""

    median: str
    seeds: str


class Row(NamedTuple):
    """A measure of generated images: a cell for each arm, None where it was not measured."""

    title: str
    cells: list[Cell | None]
    compare: str


class GenerationTable(NamedTuple):
    """The table of generated images; an arm is a strength of guidance."""

    arms: list[str]
    rows: list[Row]
    images_per_seed: Any


class EvaluationTables(NamedTuple):
    """All of evaluation.json, as text."""

    generation: GenerationTable | None
    images: str
    """What was reconstructed."""
    reconstruction: list[tuple[str, str]]
    judge: list[str]
    rest: list[tuple[str, str]]


def arrange_evaluation(evaluation: Mapping[str, Any] | None) -> EvaluationTables | None:
    """None where there is no evaluation."""
    if not evaluation:
        return None
    rest = {key: value for key, value in evaluation.items() if key not in (*_PARTS, *_FIGURES)}
    found = _part(evaluation, "reconstruction")
    count = found.get("num_images")
    return EvaluationTables(
        generation=_arrange_generation(evaluation),
        images=f"{count:,} validation images" if isinstance(count, int) else "validation images",
        reconstruction=_list_reconstruction(found),
        judge=_list_judge(evaluation),
        rest=[(name, show_value(value)) for name, value in flatten(rest).items()],
    )


def list_evaluation_tiles(evaluation: Mapping[str, Any] | None) -> list[Tile]:
    """The numbers that matter most."""
    evaluation = evaluation or {}
    tiles = []
    psnr = _number(_part(evaluation, "reconstruction"), "psnr_db")
    if psnr is not None:
        tiles.append(Tile("Reconstruction", f"{psnr:.1f}", "dB PSNR"))
    accuracy = _number(_part(_part(evaluation, "guided"), "accuracy"), "median")
    if accuracy is not None:
        tiles.append(Tile("Asked class seen", f"{100 * accuracy:.0f}", "% of samples"))
    return tiles


def _arrange_generation(evaluation: Mapping[str, Any]) -> GenerationTable | None:
    arms = [arm for name in ("guided", "unguided") if (arm := _part(evaluation, name))]
    if not arms:
        return None
    chance = _number(evaluation, "chance_accuracy")
    ceiling = _number(_part(evaluation, "reconstruction"), "accuracy")
    limits = [("chance", chance), ("reconstructions", ceiling)]
    notes = [f"{name} {_percent(value)}" for name, value in limits if value is not None]
    real = _number(evaluation, "real_frechet")
    name = str(evaluation.get("frechet_name") or "Frechet distance")
    rows = [
        Row(
            "Asked class recognised",
            [_seeds(arm, "accuracy", _percent) for arm in arms],
            ", ".join(notes),
        ),
        Row(
            name[:1].upper() + name[1:],
            [_seeds(arm, "frechet", format_value) for arm in arms],
            f"real images {format_value(real)}" if real is not None else "",
        ),
    ]
    return GenerationTable([_arm_title(arm) for arm in arms], rows, evaluation.get("num_generated"))


def _arm_title(arm: Mapping[str, Any]) -> str:
    guidance = _number(arm, "guidance")
    return "No guidance" if guidance == 1 else f"Guidance {show_value(guidance)}"


def _seeds(arm: Mapping[str, Any], name: str, show: Callable[[float], str]) -> Cell | None:
    figures = _part(arm, name)
    median, values = _number(figures, "median"), figures.get("values")
    if median is None:
        return None
    values = values if isinstance(values, list) else []
    each = [show(v) for v in values if isinstance(v, int | float)]
    return Cell(show(median), ", ".join(each))


def _list_reconstruction(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    formats: Sequence[tuple[str, str, Callable[[float], str]]] = (
        ("psnr_db", "PSNR, mean over images", lambda v: f"{v:.2f} dB"),
        ("ssim", "SSIM, mean over images", lambda v: f"{v:.3f}"),
        ("accuracy", "Class still recognised", _percent),
    )
    return [
        (title, show(value))
        for key, title, show in formats
        if (value := _number(found, key)) is not None
    ]


def _list_judge(evaluation: Mapping[str, Any]) -> list[str]:
    """Who recognised the classes, and how far it can be trusted."""
    lines = []
    accuracy = _number(_part(evaluation, "judge"), "accuracy")
    if accuracy is not None:
        lines.append(
            "Classes are recognised by a classifier trained on this corpus's real images, right "
            f"on {_percent(accuracy)} of the validation images."
        )
    warnings = evaluation.get("warnings")
    return lines + ([str(text) for text in warnings] if isinstance(warnings, list) else [])


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _part(node: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = node.get(key)
    return part if isinstance(part, Mapping) else {}


def _number(node: Mapping[str, Any], key: str) -> float | None:
    value = node.get(key)
    return float(value) if isinstance(value, int | float) else None
