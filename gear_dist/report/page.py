"""report.html: one page that shows a run, from whatever its folder holds so far."""

import importlib.resources
from pathlib import Path

from gear_dist.report.evaluation import draw_evaluation
from gear_dist.report.header import draw_header, draw_notes
from gear_dist.report.markup import Markup, element, join
from gear_dist.report.panels import collect_series, collect_stages
from gear_dist.report.record import RunRecord, read_record
from gear_dist.report.sections import (
    draw_curves,
    draw_environment,
    draw_history,
    draw_latest_grids,
    draw_settings,
)
from gear_dist.runs.run_folder import RunFolder
from gear_dist.storage.atomic import write_text

# Nothing is fetched from anywhere, whatever a run's texts hold.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


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
    sections = [
        ("results", "Results", draw_latest_grids(record.grids)),
        ("evaluation", "Evaluation", draw_evaluation(record.evaluation)),
        ("curves", "Curves", draw_curves(series, stages, record.records, record.config)),
        ("history", "Grids by step", draw_history(record.grids)),
        ("settings", "Configuration", draw_settings(record.config)),
        ("environment", "Environment", draw_environment(record.environment)),
    ]
    shown = [(anchor, title, body) for anchor, title, body in sections if body]
    links = [element("a", title, href=f"#{anchor}") for anchor, title, _ in shown]
    main = [
        element(
            "section",
            element("h2", title, id=f"{anchor}-title"),
            body,
            id=anchor,
            aria_labelledby=f"{anchor}-title",
        )
        for anchor, title, body in shown
    ]
    body = join(
        element("a", "Skip to the results", href="#main", class_="skip"),
        draw_header(record, series),
        element("nav", links, aria_label="Parts of this page"),
        element("main", draw_notes(record), main, id="main"),
        element("footer", "Written by ", element("code", "gear-dist report"), "."),
    )
    return _document(record.name, body)


def _document(name: str, body: Markup) -> str:
    style = importlib.resources.files("gear_dist.report").joinpath("style.css").read_text()
    head = join(
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{name} · gear-dist"),
        element("style", Markup(style)),
    )
    page = element("html", element("head", head), element("body", body), lang="en")
    return f"<!doctype html>\n{page}\n"
