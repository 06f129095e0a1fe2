"""Contact sheets as PNG, and beside each a JSON with the place and the settings of every image."""

import io
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from gear_dist.report.image_grid import channels_last, fit_text, magnification
from gear_dist.sheets.sheet import Sheet, SheetImage
from gear_dist.storage.atomic import write_file
from gear_dist.storage.json_files import to_json

_MARGIN, _GAP, _INNER_GAP = 16, 10, 2
_TITLE_SIZE, _TEXT_SIZE, _LINE = 20, 14, 19
_MAX_ROW_LABEL, _MIN_WIDTH = 240, 480
# Opaque: a sheet is looked at by itself, where transparency shows as whatever the viewer has.
_PAPER, _INK, _GREY = (255, 255, 255), (20, 20, 20), (90, 90, 90)

BESIDE = ".sheet.json"
"""What takes the place of .png; no other file of a model's folder ends so."""

Box = tuple[int, int, int, int]
"""Left, top, width, height in pixels."""


class DrawnSheet(NamedTuple):
    """A sheet's picture, and where its images are in it."""

    picture: Image.Image
    boxes: list[list[list[Box]]]
    scale: int
    """By which pixels are repeated."""


class _Layout(NamedTuple):
    """Sizes in pixels."""

    scale: int
    image: tuple[int, int]
    """Width and height of an image on the sheet."""
    columns_in_cell: int
    cell: tuple[int, int]
    caption: int
    """Height below each image."""
    left: int
    """Where the first column begins."""
    header: int
    """Height of the columns' labels."""


def save_sheet(sheet: Sheet, path: Path, facts: dict[str, Any]) -> Path:
    """Write PATH and the JSON beside it, each whole or not at all; the JSON's path.

    The PNG holds the JSON as well, as its text field "sheet": a copy that was parted from it still
    says what it shows.

    Args:
        sheet: at least one image.
        path: ends with .png.
        facts: of the model, which go in front of the sheet's own.

    Raises:
        StorageError: the disk refuses.
    """
    drawn = draw_sheet(sheet)
    text = to_json(facts | sheet.facts | _describe(sheet, drawn), indent=1)
    info = PngImagePlugin.PngInfo()
    info.add_itxt("sheet", text, zip=True)
    buffer = io.BytesIO()
    drawn.picture.save(buffer, "PNG", pnginfo=info, optimize=True)
    beside = path.with_suffix(BESIDE)
    write_file(beside, (text + "\n").encode())
    write_file(path, buffer.getvalue())
    return beside


def _describe(sheet: Sheet, drawn: DrawnSheet) -> dict[str, Any]:
    images = [
        {"row": row, "column": column, "place": place, "box": drawn.boxes[row][column][place]}
        | image.facts
        for row, cells in enumerate(sheet.cells)
        for column, cell in enumerate(cells)
        for place, image in enumerate(cell)
    ]
    return {
        "title": sheet.title,
        "rows": sheet.rows,
        "columns": sheet.columns,
        "scale": drawn.scale,
        "images": images,
    }


def draw_sheet(sheet: Sheet) -> DrawnSheet:
    """The picture. Small images are magnified by repeating pixels, so that all stay as they are."""
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    title_font, font = ImageFont.load_default(_TITLE_SIZE), ImageFont.load_default(_TEXT_SIZE)
    layout = _lay_out(sheet, measure, font)
    width = layout.left + len(sheet.columns) * (layout.cell[0] + _GAP) - _GAP + _MARGIN
    width = max(width, _MIN_WIDTH)
    room = width - 2 * _MARGIN
    title = _wrap(sheet.title, room, measure, title_font)
    notes = [line for note in sheet.notes for line in _wrap(note, room, measure, font)]
    top = _MARGIN + (_LINE + 6) * len(title) + _LINE * len(notes) + _GAP
    height = top + layout.header + len(sheet.rows) * (layout.cell[1] + _GAP) - _GAP + _MARGIN
    picture = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(picture)
    y = _MARGIN
    for line in title:
        draw.text((_MARGIN, y), line, fill=_INK, font=title_font)
        y += _LINE + 6
    for line in notes:
        draw.text((_MARGIN, y), line, fill=_GREY, font=font)
        y += _LINE
    for column, label in enumerate(sheet.columns):
        x = layout.left + column * (layout.cell[0] + _GAP)
        _write(draw, (x, top), label, layout.cell[0], font)
    top += layout.header
    boxes = []
    for row, label in enumerate(sheet.rows):
        y = top + row * (layout.cell[1] + _GAP)
        _write(draw, (_MARGIN, y), label, layout.left - _MARGIN - _GAP, font)
        starts = [layout.left + i * (layout.cell[0] + _GAP) for i in range(len(sheet.columns))]
        boxes.append(
            [
                _paste_cell(picture, draw, (x, y), cell, layout, font)
                for x, cell in zip(starts, sheet.cells[row], strict=True)
            ]
        )
    return DrawnSheet(picture, boxes, layout.scale)


def _lay_out(sheet: Sheet, draw: ImageDraw.ImageDraw, font: Any) -> _Layout:
    cells = [cell for row in sheet.cells for cell in row]
    images = [image for cell in cells for image in cell]
    height, width = images[0].pixels.shape[1:]
    scale = magnification(min(height, width))
    width, height = width * scale, height * scale
    columns = math.ceil(math.sqrt(max(map(len, cells))))
    rows = math.ceil(max(map(len, cells)) / columns)
    lines = max(_num_lines(image.caption) for image in images)
    caption = _LINE * lines
    labels = [line for label in sheet.rows for line in label.split("\n")]
    label_width = math.ceil(max(draw.textlength(line, font=font) for line in labels))
    return _Layout(
        scale=scale,
        image=(width, height),
        columns_in_cell=columns,
        cell=(
            columns * (width + _INNER_GAP) - _INNER_GAP,
            max(
                rows * (height + caption + _INNER_GAP) - _INNER_GAP,
                _LINE * max(map(_num_lines, sheet.rows)),
            ),
        ),
        caption=caption,
        left=_MARGIN + (min(label_width, _MAX_ROW_LABEL) + _GAP if label_width else 0),
        header=_LINE * max(map(_num_lines, sheet.columns)) + 4,
    )


def _paste_cell(
    picture: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    cell: list[SheetImage],
    layout: _Layout,
    font: Any,
) -> list[Box]:
    width, height = layout.image
    boxes = []
    for place, image in enumerate(cell):
        row, column = divmod(place, layout.columns_in_cell)
        x = corner[0] + column * (width + _INNER_GAP)
        y = corner[1] + row * (height + layout.caption + _INNER_GAP)
        pixels = channels_last(torch.as_tensor(image.pixels)[None])[0]
        large = np.ascontiguousarray(pixels.repeat(layout.scale, 0).repeat(layout.scale, 1))
        picture.paste(Image.fromarray(large), (x, y))
        _write(draw, (x, y + height), image.caption, width, font)
        boxes.append((x, y, width, height))
    return boxes


def _write(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, width: int, font: Any
) -> None:
    """Lines of a text, each cut to the width."""
    for number, line in enumerate(text.split("\n")):
        shown = fit_text(line, width, draw, font)
        draw.text((corner[0], corner[1] + number * _LINE), shown, fill=_INK, font=font)


def _num_lines(text: str) -> int:
    return text.count("\n") + 1 if text else 0


def _wrap(text: str, width: int, draw: ImageDraw.ImageDraw, font: Any) -> list[str]:
    """Lines of whole words that fit."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) <= width:
            lines[-1] = longer
        else:
            lines.append(fit_text(word, width, draw, font))
    return [line for line in lines if line]
