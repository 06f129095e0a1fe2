"""Grids: layout, magnification, captions, atomic writing."""

import numpy as np
import pytest
import torch
from PIL import Image

from gear_dist.report.image_grid import compose_grid, pair_rows, save_grid
from refusals import refused


def solid(colours, size=4):
    images = np.zeros((len(colours), size, size, 3), np.uint8)
    images[:] = np.array(colours, np.uint8)[:, None, None]
    return images


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def test_images_stand_row_by_row_with_transparent_gaps(tmp_path):
    save_grid(solid([RED, GREEN, BLUE]), tmp_path / "new" / "g.png", columns=2, scale=1)
    grid = np.asarray(Image.open(tmp_path / "new" / "g.png"))
    assert grid.shape == (2 * 4 + 12, 2 * 4 + 12, 4)
    assert tuple(grid[5, 5]) == (*RED, 255)
    assert tuple(grid[5, 13]) == (*GREEN, 255)
    assert tuple(grid[13, 5]) == (*BLUE, 255)
    assert grid[13, 13, 3] == 0
    assert grid[0, 0, 3] == 0


def test_both_layouts_and_tensors_give_the_same_grid():
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3), np.uint8)
    first = compose_grid(images, 3)
    swapped = compose_grid(torch.from_numpy(images).permute(0, 3, 1, 2), 3)
    assert first.tobytes() == swapped.tobytes()


def test_small_images_are_magnified_by_repeating_pixels():
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[0, :, 1::2] = 255
    grid = np.asarray(compose_grid(image))
    assert grid.shape[:2] == (96 + 8, 96 + 8)
    assert set(grid[4:-4, 4:-4, 0].flatten()) == {0, 255}
    assert compose_grid(np.zeros((1, 256, 256, 3), np.uint8)).size == (264, 264)


def test_captions_take_a_line_and_are_cut_to_the_width():
    plain = compose_grid(solid([RED] * 2, 96), 2)
    short = compose_grid(solid([RED] * 2, 96), 2, captions=["a", "b"])
    long = compose_grid(solid([RED] * 2, 96), 2, captions=["w" * 500, ""])
    assert plain.height < short.height == long.height
    ink = np.asarray(long)[-18:-4, :, 3] > 0
    assert ink[:, :100].any()
    assert not ink[:, 102:].any(), "a caption runs into its neighbour"


@pytest.mark.parametrize(
    ("images", "needles"),
    [
        (np.zeros((2, 3, 8, 8), np.float32), ["float32", "uint8"]),
        (np.zeros((3, 8, 8), np.uint8), ["(3, 8, 8)", "(B, 3, H, W)"]),
        (np.zeros((2, 1, 8, 8), np.uint8), ["(2, 1, 8, 8)", "(B, 3, H, W)"]),
        (np.zeros((0, 3, 8, 8), np.uint8), ["(0, 3, 8, 8)", "(B, 3, H, W)"]),
    ],
)
def test_other_arrays_are_refused(tmp_path, images, needles):
    with refused(ValueError, *needles):
        save_grid(images, tmp_path / "g.png")
    assert list(tmp_path.iterdir()) == []


def test_captions_must_fit():
    with refused(ValueError, "1 captions", "2 images"):
        compose_grid(solid([RED, RED]), captions=["a"])


def test_pair_rows_puts_each_image_above_its_partner():
    a = np.arange(5)
    assert pair_rows(a, a + 10, 2).tolist() == [0, 1, 10, 11, 2, 3, 12, 13]
    assert pair_rows(a[:2], a[:2] + 10, 8).tolist() == [0, 1, 10, 11]
    with refused(ValueError, "(5,)", "(3,)"):
        pair_rows(a, a[:3])


def test_a_caption_of_several_lines_stands_on_one() -> None:
    images = np.zeros((1, 96, 96, 3), np.uint8)
    shown = [compose_grid(images, captions=[text]) for text in ("a\nb", " a  b ", "a b")]
    assert shown[0].tobytes() == shown[1].tobytes() == shown[2].tobytes()
