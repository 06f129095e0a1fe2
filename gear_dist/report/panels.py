"""Which metrics share a chart, what the chart is called, and what it says about itself."""

import re
from typing import Any, Literal, NamedTuple

from gear_dist.config.compare import flatten

Scale = Literal["auto", "linear", "share"]

# Facts of a record that are no curves.
_NOT_CURVES = frozenset({"step", "stage", "time_s", "eta_s", "epoch", "usage_window_tokens"})


class Panel(NamedTuple):
    """A chart of all metrics whose whole name matches `pattern`."""

    group: str
    part: str
    title: str
    pattern: str
    unit: str = ""
    note: str = ""
    scale: Scale = "auto"


# The first panel that matches takes the metric.
PANELS = (
    Panel("Validation", "Validation", "Held-out images", r"(validation|val)_.*"),
    Panel(
        "Training",
        "Codebook",
        "Usage",
        r"codebook_usage",
        "% of codes",
        "Codes that occur among the last {window} tokens of all workers.",
        "share",
    ),
    Panel("Training", "Codebook", "Effective codes", r".*(effective|perplexity).*", "codes"),
    Panel(
        "Training",
        "Codebook",
        "Certainty",
        r"top1_probability.*",
        "",
        "Mean probability of the chosen code at temperature 1 and at the soft temperature.",
        "share",
    ),
    Panel("Training", "Speed", "Throughput", r"images_per_s", "images/s", "All workers.", "linear"),
    Panel("Training", "Speed", "Time", r".*_(ms|s)"),
    Panel("Training", "Memory", "Memory", r".*_bytes", "bytes"),
    Panel("Training", "Optimizers", "Gradient norms", r"grad_norm.*", "", "Before clipping."),
    Panel("Training", "Optimizers", "Learning rates", r"learning_rate.*", "", "", "linear"),
    Panel(
        "Losses",
        "Alignment",
        "Projected tap and teacher",
        r".*align.*",
        "-cosine",
        "Unweighted. \N{MINUS SIGN}1 is perfect agreement.",
    ),
    Panel(
        "Losses",
        "Discriminator",
        "Loss",
        r"disc.*",
        "",
        "Hinge, where 1 is a blind guess, and weighted LeCam where that is on.",
    ),
    Panel("Losses", "Discriminator", "LeCam", r"lecam", "", "Unweighted."),
    Panel(
        "Losses", "Tokenizer", "Total", r"tokenizer_(loss|total)", "", "Weighted sum of its terms."
    ),
    Panel(
        "Losses",
        "Tokenizer",
        "Reconstruction",
        r"l1|l2|mse|gradient|lpips",
        "",
        "Unweighted, pixels in \N{MINUS SIGN}1 to 1.",
    ),
    Panel("Losses", "Tokenizer", "Quantizer", r"vq|commit", "", "Distance of latents and codes."),
    Panel(
        "Losses",
        "Generator",
        "Next token",
        r"cross_entropy.*|generator.*|token_accuracy",
        "nats/token",
        "{uniform} nats is a uniform guess over the codes.",
    ),
    Panel(
        "Losses",
        "Tokenizer",
        "Entropy term",
        r".*entropy",
        "nats",
        "Negative: sharp choices, evenly used codes.",
    ),
    Panel(
        "Losses",
        "Tokenizer",
        "Adversarial",
        r"gan|adversarial",
        "",
        "Minus the discriminator's score of reconstructions.",
    ),
    Panel("Other", "Other", "Other", r".*"),
)
GROUPS = ("Losses", "Training", "Validation", "Other")
_PARTS = ("Tokenizer", "Discriminator", "Generator", "Alignment")


class Series(NamedTuple):
    """One metric: (step, value) in order; None where a record has no finite value."""

    name: str
    points: tuple[tuple[int, float | None], ...]

    @property
    def last(self) -> float | None:
        """The newest finite value."""
        return next((value for _, value in reversed(self.points) if value is not None), None)


class StageSpan(NamedTuple):
    """A stage's name and the steps of its first and last record."""

    name: str
    first: int
    last: int


def collect_series(records: list[dict[str, Any]]) -> dict[Panel, list[Series]]:
    """Sort all numeric metrics into panels, in the panels' order."""
    points: dict[str, list[tuple[int, float | None]]] = {}
    for record in records:
        for name, value in flatten(record).items():
            if name in _NOT_CURVES or isinstance(value, str | bool | list):
                continue
            points.setdefault(name, []).append((record["step"], value))
    result: dict[Panel, list[Series]] = {}
    for name, values in points.items():
        panel = next(p for p in PANELS if re.fullmatch(p.pattern, name))
        if any(value is not None for _, value in values):
            result.setdefault(panel, []).append(Series(name, tuple(values)))
    return {panel: result[panel] for panel in sorted(result, key=_place)}


def _place(panel: Panel) -> tuple[int, int]:
    """Losses stand by the network that they train, all else as in `PANELS`."""
    part = _PARTS.index(panel.part) if panel.part in _PARTS else len(_PARTS)
    return part, PANELS.index(panel)


def collect_stages(records: list[dict[str, Any]]) -> list[StageSpan]:
    """Runs of records of one stage."""
    spans: list[StageSpan] = []
    for record in records:
        name, step = str(record.get("stage", "")), record["step"]
        if spans and spans[-1].name == name:
            spans[-1] = spans[-1]._replace(last=step)
        else:
            spans.append(StageSpan(name, step, step))
    return [span for span in spans if span.name]


def training_seconds(records: list[dict[str, Any]]) -> float:
    """Time of training: `time_s` counts up, and may start at 0 again where a run resumed."""
    total = previous = 0.0
    for record in records:
        time = record.get("time_s")
        if not isinstance(time, int | float):
            continue
        total += time - previous if time >= previous else time
        previous = time
    return total
