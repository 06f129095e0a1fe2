"""The statistics of a corpus as one HTML page with pictures, which needs no network."""

import base64
import io
from typing import Any

from gear_data_prep.corpus_tools.preview import contact_sheet
from gear_data_prep.corpus_tools.stats import CorpusStats, describe_duplicates
from gear_dist.report.markup import Markup, element, join
from gear_dist.storage.base import Storage

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: CanvasText; background: Canvas; color-scheme: light dark }
table { border-collapse: collapse } td, th { padding: .15rem .7rem; text-align: right }
td:first-child, th:first-child { text-align: left } img { max-width: 100% }
.bar { background: #4c78a8; height: .7rem; display: inline-block }
"""
_MAX_CLASSES = 200
_BAR_PIXELS = 300
_PICTURES = 48


def render_page(storage: Storage, stats: CorpusStats) -> str:
    """The page.

    Raises:
        DataError: the shards of its pictures cannot be read.
    """
    counts = (
        f"{stats.num_samples:,} samples in {stats.num_shards:,} shards, "
        f"{stats.num_bytes / 1e6:,.1f} MB; {describe_duplicates(stats)}"
    )
    body = join(
        element("h1", stats.address),
        element("p", counts),
        element("h2", "Sizes and captions"),
        _quantiles(stats),
        _bars("Captions a sample", [(str(n), c) for n, c in stats.captions]),
        _bars(f"Classes ({len(stats.classes):,})", list(stats.classes[:_MAX_CLASSES])),
        _bars("Left out", list(stats.left_out)) if stats.left_out else None,
        element("h2", "Pictures"),
        element("img", src=_picture(storage), alt="a random choice of the images"),
    )
    head = join(
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width"),
        element("title", f"Corpus {stats.address}"),
        element("style", Markup(_STYLE)),
    )
    page = element("html", element("head", head), element("body", body), lang="en")
    return f"<!doctype html>\n{page}\n"


def _quantiles(stats: CorpusStats) -> Markup:
    head = [
        element("th", text) for text in ("", "min", "5 %", "25 %", "50 %", "75 %", "95 %", "max")
    ]
    rows = [
        element("tr", element("td", name), [element("td", f"{value:,.4g}") for value in values])
        for name, values in stats.distributions
    ]
    return element("table", element("tr", head), rows)


def _bars(title: str, counts: list[tuple[str, int]]) -> Markup:
    largest = max((count for _, count in counts), default=1)
    rows: list[Any] = [
        element(
            "tr",
            element("td", name),
            element("td", f"{count:,}"),
            element("td", element("span", class_="bar", style=_width(count, largest))),
        )
        for name, count in counts
    ]
    return join(element("h2", title), element("table", rows))


def _width(count: int, largest: int) -> str:
    return f"width: {max(1, _BAR_PIXELS * count // max(largest, 1))}px"


def _picture(storage: Storage) -> str:
    stream = io.BytesIO()
    contact_sheet(storage, _PICTURES, side=96).convert("RGB").save(stream, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
