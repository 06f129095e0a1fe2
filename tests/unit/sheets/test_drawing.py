"""What is drawn: every image as it is, at the place that is told, and labels that fit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gear_dist.errors import StorageError
from gear_dist.sheets.drawing import draw_sheet, save_sheet
from gear_dist.sheets.sheet import Sheet, SheetImage
from refusals import refused


def make_sheet(side: int, counts: list[list[int]], **changes: object) -> Sheet:
    random = torch.Generator().manual_seed(0)

    def image() -> SheetImage:
        pixels = torch.randint(0, 256, (3, side, side), generator=random, dtype=torch.uint8)
        return SheetImage(pixels, {"seed": 1}, str(changes.get("caption", "")))

    cells = [[[image() for _ in range(count)] for count in row] for row in counts]
    return Sheet(
        title=str(changes.get("title", "A title")),
        notes=["a note"],
        columns=[f"column {i}" for i in range(len(counts[0]))],
        rows=[str(changes.get("row", f"row {i}")) for i in range(len(counts))],
        cells=cells,
        facts={"sheet": "test"},
    )


@pytest.mark.parametrize("side", [8, 100])
@pytest.mark.parametrize("counts", [[[1]], [[1, 1, 1]], [[5, 5], [5, 2], [1, 5]]])
@pytest.mark.parametrize("caption", ["", "one\ntwo"])
def test_images_are_where_they_are_said_to_be(side: int, counts: list, caption: str) -> None:
    sheet = make_sheet(side, counts, caption=caption)
    drawn = draw_sheet(sheet)
    pixels = np.asarray(drawn.picture)
    taken = np.zeros(pixels.shape[:2], int)
    for cells, boxes in zip(sheet.cells, drawn.boxes, strict=True):
        for images, places in zip(cells, boxes, strict=True):
            for image, (left, top, width, height) in zip(images, places, strict=True):
                found = pixels[top : top + height : drawn.scale, left : left + width : drawn.scale]
                assert np.array_equal(found, image.pixels.permute(1, 2, 0).numpy())
                taken[top : top + height, left : left + width] += 1
    assert taken.max() == 1, "no image lies over another"
    assert drawn.scale == (12 if side == 8 else 1)


def ink(picture: Image.Image, box: tuple[int, int, int, int]) -> bool:
    return bool((np.asarray(picture.crop(box)) < 128).any())


def test_labels_are_there_and_stay_in_their_places() -> None:
    long = "a very long label " * 20
    sheet = make_sheet(100, [[1, 1]], row=long, title=long, caption=long)
    drawn = draw_sheet(sheet)
    [
        [[first]],
    ] = [drawn.boxes[0][:1]]
    left, top, width, height = first
    assert ink(drawn.picture, (0, top, left, top + height)), "the row's"
    assert ink(drawn.picture, (left, top - 23, left + width, top)), "the column's"
    assert ink(drawn.picture, (left, top + height, left + width, top + height + 19)), "the caption"
    assert not ink(drawn.picture, (left + width, top, left + width + 10, top + height + 19))
    bare = make_sheet(100, [[1, 1]], row="")
    assert draw_sheet(bare).boxes[0][0][0][0] < left


def test_the_files(tmp_path: Path) -> None:
    out = tmp_path / "new" / "sheet.png"
    beside = save_sheet(make_sheet(8, [[2, 1]]), out, {"model": "runs/demo"})
    assert beside == tmp_path / "new" / "sheet.sheet.json"
    facts = json.loads(beside.read_text())
    assert facts == json.loads(Image.open(out).text["sheet"])
    assert (facts["model"], facts["sheet"], facts["scale"]) == ("runs/demo", "test", 12)
    places = [(i["row"], i["column"], i["place"], i["seed"]) for i in facts["images"]]
    assert places == [(0, 0, 0, 1), (0, 0, 1, 1), (0, 1, 0, 1)]
    again = tmp_path / "again.png"
    save_sheet(make_sheet(8, [[2, 1]]), again, {"model": "runs/demo"})
    assert again.read_bytes() == out.read_bytes()


def test_a_refused_write_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "file" / "sheet.png"
    with refused(StorageError, out.parent / "sheet.sheet.json"):
        save_sheet(make_sheet(8, [[1]]), out, {})
