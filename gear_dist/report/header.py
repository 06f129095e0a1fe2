"""Top of the report: run state, key numbers, caveats."""

import datetime
import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from gear_dist.config.compare import MORE_TEACHERS
from gear_dist.formatting import format_duration
from gear_dist.report.evaluation import Tile, list_evaluation_tiles
from gear_dist.report.numbers import format_count, format_value
from gear_dist.report.panels import Panel, Series, training_seconds

if TYPE_CHECKING:
    from gear_dist.report.record import RunRecord

# What the tiles show of the curves, where a run has them: metric, label, unit.
_TILES = (
    ("tokenizer_loss", "Tokenizer loss", ""),
    ("cross_entropy", "Cross-entropy", "nats"),
    ("align_hard", "Alignment", ""),
)


class Progress(NamedTuple):
    """How far a run is."""

    facts: list[str]
    step: int
    total_steps: int
    percent: str


def measure_progress(record: "RunRecord") -> Progress | None:
    """None for a run that has not started."""
    status = record.status
    if status is None:
        return None
    # status.json is written at starts and ends; in between the metrics know more.
    step = max([status.step, *(item["step"] for item in record.records[-1:])])
    facts = [f"step {step:,} of {status.total_steps:,}"]
    if record.records and record.records[-1].get("stage"):
        facts.append(f"stage {record.records[-1]['stage']}")
    if status.exit_code is not None:
        facts.append(f"exit code {status.exit_code}")
    if status.updated:
        facts.append(f"updated {_format_time(status.updated)}")
    share = min(1.0, step / max(1, status.total_steps))
    return Progress(facts, step, status.total_steps, f"{100 * share:.1f}")


def _format_time(text: str) -> str:
    try:
        return datetime.datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M:%S %Z").strip()
    except ValueError:
        return text


def list_tiles(record: "RunRecord", series: Mapping[Panel, list[Series]]) -> list[Tile]:
    """The key numbers, as far as the run has them."""
    lines = {line.name: line for group in series.values() for line in group}
    tiles: list[Tile] = []
    seconds = training_seconds(record.records)
    if seconds:
        tiles.append(Tile("Training time", format_duration(seconds)))
    eta = record.records[-1].get("eta_s") if record.records else None
    is_running = record.status is not None and record.status.state == "running"
    if is_running and not record.is_abandoned and isinstance(eta, int | float):
        tiles.append(Tile("Time left", format_duration(eta)))
    if "images_per_s" in lines:
        speeds = [v for _, v in lines["images_per_s"].points if v is not None]
        tiles.append(Tile("Throughput", format_value(statistics.median(speeds)), "images/s"))
    if "codebook_usage" in lines:
        usage = lines["codebook_usage"].last or 0.0
        tiles.append(Tile("Codebook usage", f"{100 * usage:.1f}", "%"))
    for name, label, unit in _TILES:
        value = lines[name].last if name in lines else None
        if value is not None:
            tiles.append(Tile(label, format_value(value), unit))
    tiles += list_evaluation_tiles(record.evaluation)
    workers, batch = record.environment.get("world_size"), record.config.get("engine.global_batch")
    if workers:
        tiles.append(Tile("Workers", format_count(workers), f"· batch {batch}"))
    return tiles


def list_notes(record: "RunRecord") -> list[str]:
    """What limits the meaning of the numbers."""
    notes = []
    config, status = record.config, record.status
    if not _number(config, "losses.lpips_weight") and _number(config, "losses.gradient_weight"):
        notes.append("LPIPS weights absent: L1 plus L1 of image gradients used.")
    if _is_aligned(config) and "convnet" in _teacher_names(config):
        notes.append(
            "A teacher is the small convolutional one, trained on a labelled corpus by "
            "gear-dist teacher: results are not comparable with runs aligned to DINOv2."
        )
    if status and status.state == "interrupted":
        notes.append("The run was interrupted; the same command resumes it.")
    if status and status.state in ("running", "restarting") and record.is_abandoned:
        notes.append(
            "The process that trained this run is gone without a word; the same command resumes it."
        )
    elif status and status.state == "running":
        notes.append(
            "The run was still training when this page was written; write it again for more."
        )
    git = record.environment.get("git")
    if isinstance(git, Mapping) and git.get("dirty"):
        notes.append("The code had uncommitted changes: its git revision does not describe it.")
    if not record.records:
        notes.append("No metrics have been recorded yet.")
    return notes


def _number(config: Mapping[str, Any], key: str) -> float:
    value = config.get(key, 0)
    return float(value) if isinstance(value, int | float) else 0.0


def _teacher_names(config: Mapping[str, Any]) -> list[Any]:
    own = ("teacher.", MORE_TEACHERS)
    return [v for key, v in config.items() if key.startswith(own) and key.endswith(".name")]


def _is_aligned(config: Mapping[str, Any]) -> bool:
    weights = ("alignment.soft_weight", "alignment.hard_weight")
    return any(_number(config, key) > 0 for key in weights)
