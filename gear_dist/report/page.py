"""report.html: one page that shows a run, from whatever its folder holds so far."""

import importlib.resources
from pathlib import Path

from markupsafe import Markup

from gear_dist.report.evaluation import arrange_evaluation
from gear_dist.report.header import list_notes, list_tiles, measure_progress
from gear_dist.report.panels import collect_series, collect_stages
from gear_dist.report.record import RunRecord, read_record
from gear_dist.report.sections import (
    list_charts,
    list_environment,
    list_latest_grids,
    list_licences,
    list_setting_rows,
    list_strips,
)
from gear_dist.report.templating import load_template
from gear_dist.runs.run_folder import RunFolder
from gear_dist.storage.atomic import write_text


def write_report(folder: RunFolder) -> Path:
    """Write RUN/report.html and return its path.

    Raises:
        DataError: a file of the run folder is not what it should be.
        StorageError: the disk refuses.
    """
    write_text(folder.report_path, render_report(read_record(folder)))
    return folder.report_path


def render_report(record: RunRecord) -> str:
    """The page as HTML."""
    series = collect_series(record.records)
    stages = collect_stages(record.records)
    # Each part is shown by the template of its name, and left out where it holds nothing.
    parts = [
        ("results", "Results", list_latest_grids(record.grids)),
        ("evaluation", "Evaluation", arrange_evaluation(record.evaluation)),
        ("curves", "Curves", list_charts(series, stages, record.records, record.config)),
        ("history", "Grids by step", list_strips(record.grids)),
        ("licences", "Licences of the images", list_licences(record.environment)),
        ("settings", "Configuration", list_setting_rows(record.config)),
        ("environment", "Environment", list_environment(record.environment)),
    ]
    style = importlib.resources.files("gear_dist.report").joinpath("style.css").read_text()
    return load_template("gear_dist.report", "page.html").render(
        style=Markup(style),
        name=record.name,
        status=record.status,
        progress=measure_progress(record),
        tiles=list_tiles(record, series),
        notes=list_notes(record),
        parts=[(anchor, title, content) for anchor, title, content in parts if content],
    )
