"""Layers that all tokenizers share, against values in double precision."""

import pytest
import torch

from gear_dist.models.tokenizers.blocks import NORM_EPS, GroupNorm


@pytest.mark.parametrize("mean", [0.0, 5.0, 500.0])
def test_group_norm_is_right_in_either_memory_format(mean: float) -> None:
    """torch's own is wrong on a CPU for channels-last inputs whose mean is far from zero."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 32, 16, 16, generator=generator) * 0.1 + mean
    norm = GroupNorm(8, 32)
    expected = torch.nn.functional.group_norm(x.double(), 8, eps=NORM_EPS)
    for layout in (torch.contiguous_format, torch.channels_last):
        found = norm(x.contiguous(memory_format=layout)).double()
        # fp32 holds an input near 500 to 3e-5, a thousandth of its deviation.
        assert (found - expected).abs().max() < (2e-3 if mean > 100 else 1e-4)
