"""No operation of the torch path ever holds a tensor near the size of the (N, K) matrix."""

from collections.abc import Callable

import pytest
import torch

from gear_kernels import (
    assign,
    lfq_assign,
    lfq_soft_readout,
    soft_readout,
    straight_through_readout,
    vocabulary_cross_entropy,
)
from gear_kernels.tiles_torch import block_rows
from largest_tensor import LargestTensor

TOKENS, CODES, WIDTH, COLUMNS = 2048, 16384, 14, 24


def _assign(latents, codebook, table, implementation: str) -> torch.Tensor:
    found = assign(latents, codebook, implementation=implementation)
    return found.token_entropy + found.mean_probabilities_K.square().sum()


def _soft_readout(latents, codebook, table, implementation: str) -> torch.Tensor:
    return soft_readout(latents, codebook, table, implementation=implementation).sum()


def _straight_through(latents, codebook, table, implementation: str) -> torch.Tensor:
    indices = torch.zeros(len(latents), dtype=torch.int64)
    return straight_through_readout(
        latents, codebook, table, indices, implementation=implementation
    ).sum()


def _lfq(latents, codebook, table, implementation: str) -> torch.Tensor:
    found = lfq_assign(latents, implementation=implementation)
    out = lfq_soft_readout(latents, table, implementation=implementation)
    return out.sum() + found.token_entropy + found.mean_probabilities_K.square().sum()


def _cross_entropy(latents, codebook, table, implementation: str) -> torch.Tensor:
    targets = torch.zeros(len(latents), dtype=torch.int64)
    return vocabulary_cross_entropy(latents, codebook, targets, implementation)


LOSSES = [_assign, _soft_readout, _straight_through, _lfq, _cross_entropy]


def largest_tensor(loss: Callable[..., torch.Tensor], tokens: int, implementation: str) -> int:
    """Elements of the largest tensor in forward and backward."""
    generator = torch.Generator().manual_seed(0)
    shapes = (tokens, WIDTH), (CODES, WIDTH), (CODES, COLUMNS)
    inputs = [torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes]
    with LargestTensor() as watch:
        loss(*inputs, implementation).backward()
    return watch.elements


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_no_large_tensor(loss) -> None:
    assert largest_tensor(loss, TOKENS, "torch") < TOKENS * CODES / 10


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_the_watch_sees_the_reference_matrix(loss) -> None:
    assert largest_tensor(loss, 64, "reference") >= 64 * CODES


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_the_watch_sees_the_tiles(loss) -> None:
    """An operation that hid in an operator of its own would pass the watch, whatever it held."""
    assert largest_tensor(loss, TOKENS, "torch") >= block_rows(CODES, torch.device("cpu")) * CODES
