"""The statistics of a corpus as one HTML page with pictures, which needs no network."""

import base64
import io
from collections.abc import Sequence

from gear_data_prep.corpus_tools.preview import contact_sheet
from gear_data_prep.corpus_tools.stats import CorpusStats, describe_duplicates, list_origins
from gear_dist.report.templating import load_template
from gear_dist.storage.base import Storage

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
    distributions = [
        (name, [f"{value:,.4g}" for value in values]) for name, values in stats.distributions
    ]
    return load_template("gear_data_prep.corpus_tools", "stats.html").render(
        address=stats.address,
        counts=counts,
        distributions=distributions,
        captions=_bars(stats.captions),
        num_classes=f"{len(stats.classes):,}",
        classes=_bars(stats.classes[:_MAX_CLASSES]),
        origins=[(title, _bars(counts)) for title, counts in list_origins(stats)],
        left_out=_bars(stats.left_out),
        picture=_picture(storage),
    )


def _bars(counts: Sequence[tuple[str | int, int]]) -> list[tuple[str | int, str, int]]:
    """Name, count as text, and pixels of the bar."""
    largest = max([1, *(count for _, count in counts)])
    return [(name, f"{count:,}", max(1, _BAR_PIXELS * count // largest)) for name, count in counts]


def _picture(storage: Storage) -> str:
    stream = io.BytesIO()
    contact_sheet(storage, _PICTURES, side=96).convert("RGB").save(stream, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
