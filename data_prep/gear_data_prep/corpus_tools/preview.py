"""A contact sheet: a seeded choice of a corpus's images, read by ranges, with their classes."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gear_dist.config.colour import WHITE, Colour
from gear_dist.data.images import BadImageError, crop, decode_image, resize_short_side
from gear_dist.data.manifest import iterate_samples, load_manifest
from gear_dist.data.origins import attribution_line, iterate_origins
from gear_dist.errors import DataError
from gear_dist.report.image_grid import compose_grid
from gear_dist.storage.base import Storage

ATTRIBUTION = "Attribution"
"""Where a sheet keeps it, in memory and as a text chunk of the PNG."""
_MAX_PIXELS = 1 << 28


def contact_sheet(
    storage: Storage,
    count: int,
    *,
    side: int = 128,
    seed: int = 0,
    columns: int = 8,
    background: Colour = WHITE,
) -> Image.Image:
    """Centre crops of some images, each with its class (or key) under it.

    Args:
        storage: the corpus.
        count: images; fewer where there are not so many.
        side: pixels of each.
        seed: of the choice.
        columns: images a row.
        background: what shows through transparent pixels.

    Returns:
        The sheet; `info["Attribution"]` has a line for each image of which the corpus states
        licence or attribution, for `attribution_metadata`.

    Raises:
        DataError: no corpus there, or an image that cannot be read.
    """
    info, shards = load_manifest(storage)
    generator = np.random.default_rng(seed)
    total = info.num_samples
    chosen = np.sort(generator.choice(total, min(count, total), replace=False))
    images, captions = [], []
    for row in _rows(iterate_samples(storage), chosen):
        shard = shards[row["shard"]]
        data = storage.read_range(shard.key, row["offset"], row["bytes"])
        try:
            image = resize_short_side(decode_image(data, _MAX_PIXELS, background), side)
        except BadImageError as error:
            raise DataError(f"{storage.address}/{shard.key}: {row['key']}: {error}") from None
        images.append(np.asarray(crop(image, side)))
        label = row["class_index"]
        captions.append(info.classes[label] if label >= 0 else row["key"])
    sheet = compose_grid(np.stack(images), columns, captions=captions, scale=1)
    origins = _rows(iterate_origins(storage, info), chosen)
    if lines := [line for row in origins if (line := attribution_line(row))]:
        sheet.info[ATTRIBUTION] = "\n".join(lines)
    return sheet


def attribution_metadata(sheet: Image.Image) -> PngInfo:
    """What a PNG of the sheet says of its images' licences, as text that viewers show."""
    metadata = PngInfo()
    if ATTRIBUTION in sheet.info:
        metadata.add_itxt(ATTRIBUTION, sheet.info[ATTRIBUTION])
    return metadata


def _rows(tables: Iterable[pa.Table], chosen: np.ndarray) -> list[dict]:
    """The chosen rows of a table that comes in parts, a part of it in memory at a time."""
    rows: list[dict] = []
    first = 0
    for table in tables:
        here = chosen[(chosen >= first) & (chosen < first + table.num_rows)] - first
        rows += table.take(pa.array(here)).to_pylist()
        first += table.num_rows
    return rows
