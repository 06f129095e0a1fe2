"""Between stored pixels and what the networks take."""

import torch

from gear_dist.data.pixels import to_model_range, to_u8


def test_pixels_come_back_as_they_were():
    stored = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_u8(to_model_range(stored)), stored)


def test_values_between_two_levels_go_to_the_nearer_one():
    levels = torch.arange(255).float()
    assert torch.equal(to_u8((levels + 0.4) / 127.5 - 1), levels.to(torch.uint8))
    assert torch.equal(to_u8((levels + 0.6) / 127.5 - 1), (levels + 1).to(torch.uint8))


def test_what_is_beyond_the_range_is_clamped():
    assert to_u8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]
