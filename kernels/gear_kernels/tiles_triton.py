"""Tiles that the Triton kernels share: loads, affinities, and their launch sizes.

Affinities are evaluated up to the term -|z|^2 of a row: u = FACTOR z.c + bias_k, FACTOR = 2 and
bias = -|c|^2 for squared distances, 1 and 0 for inner products. All in float32, never TF32.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gear_kernels.dispatch import GRADIENT_WIDTH, Affinity, interpreting


@triton.jit
def load_matrix(pointer, rows, num_rows, first_column, num_columns, BLOCK: tl.constexpr):
    """(rows, BLOCK) of a contiguous (num_rows, num_columns) matrix, zeros beyond its edges."""
    columns = first_column + tl.arange(0, BLOCK)
    inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
    offsets = rows[:, None].to(tl.int64) * num_columns + columns[None, :]
    return tl.load(pointer + offsets, mask=inside, other=0.0)


@triton.jit
def load_scores(problem, rows, codes, CODE: tl.constexpr):
    """u for (rows, codes): float32, -inf for codes beyond the last.

    Args:
        problem: (latents, codebook, bias, number of rows, number of codes).
        CODE: (code width, its padded size, FACTOR, its padded size in an output).
    """
    latents_ptr, codebook_ptr, bias_ptr, num_rows, num_codes = problem
    WIDTH: tl.constexpr = CODE[0]
    # Wide codes in parts: their whole tiles would fill shared memory and registers.
    PART: tl.constexpr = CODE[1] if CODE[1] < 32 else 32
    products = tl.zeros([rows.shape[0], codes.shape[0]], tl.float32)
    for first in range(0, WIDTH, PART):
        latents = load_matrix(latents_ptr, rows, num_rows, first, WIDTH, PART)
        codes_tile = load_matrix(codebook_ptr, codes, num_codes, first, WIDTH, PART)
        products += tl.dot(latents, tl.trans(codes_tile), input_precision="ieee")
    bias = tl.load(bias_ptr + codes, mask=codes < num_codes, other=-float("inf"))
    return CODE[2] * products + bias[None, :]


@triton.jit
def load_log_probabilities(problem, state, rows, codes, inverse_temperature, CODE: tl.constexpr):
    """log softmax(u / temperature) for (rows, codes); -inf beyond the last row or code.

    Args:
        state: (shift, log mass) of the rows, see `Statistics`.
    """
    shift_ptr, log_mass_ptr = state
    num_rows = problem[3]
    shift = tl.load(shift_ptr + rows, mask=rows < num_rows, other=0.0)
    log_mass = tl.load(log_mass_ptr + rows, mask=rows < num_rows, other=float("inf"))
    scores = load_scores(problem, rows, codes, CODE)
    return (scores - shift[:, None]) * inverse_temperature - log_mass[:, None]


class Problem(NamedTuple):
    """Latents and a codebook as the kernels take them: float32, contiguous."""

    latents_NC: Tensor
    codebook_KC: Tensor
    bias_K: Tensor
    """-|c|^2, or zeros."""
    factor: float
    """2 or 1."""

    @property
    def arguments(self) -> tuple[Tensor | int, ...]:
        """The tuple that the kernels call `problem`."""
        return (*self[:3], len(self.latents_NC), len(self.codebook_KC))

    @property
    def constants(self) -> tuple[int, int, float, int]:
        """The compile-time tuple that the kernels call CODE."""
        width = self.codebook_KC.shape[1]
        return width, padded_width(width), self.factor, triton.next_power_of_2(width)

    def row_term(self) -> Tensor | float:
        """What u leaves out of s: -|z|^2 (N,), or 0."""
        return -self.latents_NC.square().sum(1) if self.factor == 2.0 else 0.0


def prepare(latents_NC: Tensor, codebook_KC: Tensor, affinity: Affinity) -> Problem:
    """The `Problem` of float32 latents and codes."""
    num_codes = len(codebook_KC)
    if affinity == Affinity.INNER_PRODUCT:
        return Problem(latents_NC, codebook_KC, codebook_KC.new_zeros(num_codes), 1.0)
    return Problem(latents_NC, codebook_KC, -codebook_KC.square().sum(1), 2.0)


def padded_width(width: int) -> int:
    """Code width padded to be contracted by tl.dot: a power of two, at least 16."""
    return max(16, triton.next_power_of_2(width))


class ScoreTile(NamedTuple):
    """Launch size of the kernels that only evaluate affinities."""

    block_n: int
    block_k: int
    num_warps: int


def score_tile(width: int) -> ScoreTile:
    """Rows and codes of a tile: without register spills on Hopper, as its assembler reports."""
    return ScoreTile(32, 64, 4 if width <= GRADIENT_WIDTH else 8)


class ReadoutTile(NamedTuple):
    """Launch size of a kernel that contracts with the table."""

    block_n: int
    block_k: int
    block_d: int
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, int]:
        """As keyword arguments of a launch."""
        names = "BLOCK_N", "BLOCK_K", "BLOCK_D", "num_warps", "num_stages"
        return dict(zip(names, self, strict=True))


def num_splits(programs: int, most: int, device: torch.device) -> int:
    """Number of splits of the inner loop, so that two waves of programs fill the device.

    Every part writes its own partial sum; they are added afterwards in a fixed order.
    """
    if interpreting() or device.type != "cuda":
        return min(2, most)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(most, triton.cdiv(2 * processors, programs)))
