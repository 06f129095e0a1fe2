"""Gradient of a soft read-out with respect to affinities, in Triton: for latents and codebook.

One contraction g.t a (token, code) pair serves both gradients: a program owns a block of rows and
a range of codes, keeps its rows' latent gradient in registers, and writes the codebook's as partial
sums, which are added afterwards in a fixed order. No atomics.
`problem`, `state` and CODE: see tiles_triton.py.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gear_kernels import soft_readout_torch
from gear_kernels.dispatch import GRADIENT_WIDTH, Affinity
from gear_kernels.tiles_triton import (
    Problem,
    ReadoutTile,
    load_log_probabilities,
    load_matrix,
    num_splits,
    prepare,
)

# Partial gradients of the codebook, one a row block, that a launch may write.
_PARTIAL_BYTES = 2**26


@triton.jit
def score_gradient_kernel(
    problem,
    state,
    table_ptr,
    out_grad_ptr,
    delta_ptr,
    latents_partial_ptr,
    codebook_partial_ptr,
    column_partial_ptr,
    first_block,
    codes_per_split,
    num_columns,
    inverse_temperature,
    CODE: tl.constexpr,
    NEEDS_CODEBOOK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """ds = p (g.t - delta) for a row block and the codes of a split, read once for both gradients.

    Writes sum_k ds c_k per (split, row), and per (row block of this launch, code) the sums of
    ds z_n and of ds: partial sums, added afterwards in a fixed order (all unscaled).
    """
    WIDTH: tl.constexpr = CODE[0]
    BLOCK_C: tl.constexpr = CODE[3]
    num_rows = problem[3]
    num_codes = problem[4]
    block = tl.program_id(0)
    split = tl.program_id(1)
    rows = (first_block + block) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = rows < num_rows
    columns = tl.arange(0, BLOCK_C)
    delta = tl.load(delta_ptr + rows, mask=inside, other=0.0)
    latents = load_matrix(problem[0], rows, num_rows, 0, WIDTH, BLOCK_C)
    gradient = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    last = tl.minimum((split + 1) * codes_per_split, num_codes)
    for start in range(split * codes_per_split, last, BLOCK_K):
        codes = start + tl.arange(0, BLOCK_K)
        pull = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        for first_column in range(0, num_columns, BLOCK_D):
            out_grad = load_matrix(out_grad_ptr, rows, num_rows, first_column, num_columns, BLOCK_D)
            tile = load_matrix(table_ptr, codes, num_codes, first_column, num_columns, BLOCK_D)
            pull += tl.dot(out_grad, tl.trans(tile), input_precision="ieee")
        log_probabilities = load_log_probabilities(
            problem, state, rows, codes, inverse_temperature, CODE
        )
        scores_grad = tl.exp(log_probabilities) * (pull - delta[:, None])
        code_tile = load_matrix(problem[1], codes, num_codes, 0, WIDTH, BLOCK_C)
        gradient += tl.dot(scores_grad, code_tile, input_precision="ieee")
        if NEEDS_CODEBOOK:
            partial = tl.dot(tl.trans(scores_grad), latents, input_precision="ieee")
            places = block.to(tl.int64) * num_codes + codes
            mask = (codes[:, None] < num_codes) & (columns[None, :] < WIDTH)
            offsets = places[:, None] * WIDTH + columns[None, :]
            tl.store(codebook_partial_ptr + offsets, partial, mask=mask)
            column = tl.sum(scores_grad, 0)
            tl.store(column_partial_ptr + places, column, mask=codes < num_codes)
    offsets = (split.to(tl.int64) * num_rows + rows[:, None]) * WIDTH + columns[None, :]
    mask = inside[:, None] & (columns[None, :] < WIDTH)
    tl.store(latents_partial_ptr + offsets, gradient, mask=mask)


@triton.jit
def row_products_kernel(
    left_ptr,
    right_ptr,
    rest_ptr,
    products_ptr,
    num_rows,
    num_columns,
    HAS_REST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Per row: sum over columns of left times (right + rest), in float32."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, num_columns, BLOCK_D):
        left = load_matrix(left_ptr, rows, num_rows, first, num_columns, BLOCK_D)
        right = load_matrix(right_ptr, rows, num_rows, first, num_columns, BLOCK_D).to(tl.float32)
        if HAS_REST:
            rest = load_matrix(rest_ptr, rows, num_rows, first, num_columns, BLOCK_D)
            right += rest.to(tl.float32)
        total += tl.sum(left.to(tl.float32) * right, 1)
    tl.store(products_ptr + rows, total, mask=rows < num_rows)


def backward_tile(width: int, dtype: torch.dtype) -> ReadoutTile:
    """Tile of the gradient of the scores: as large as registers hold with codes of a width."""
    if dtype == torch.float32:
        return ReadoutTile(64, 64, 32, 8, 2)
    return ReadoutTile(128 if width <= 16 else 64, 64, 64, 8, 3)


class Partials(NamedTuple):
    """Partial sums that the launches write, S splits of the codes and B row blocks a launch."""

    latents_SNC: Tensor
    codebook_BKC: Tensor
    column_BK: Tensor


class TilePlan(NamedTuple):
    """How the work is cut."""

    tile: ReadoutTile
    blocks: int
    """Row blocks in all."""
    launch_blocks: int
    """Row blocks of one launch: as many as their partial codebook gradients may take memory."""
    splits: int
    codes_per_split: int


def plan_tiles(problem: Problem, table_dtype: torch.dtype) -> TilePlan:
    """The cut for one problem on its device."""
    num_tokens, num_codes = problem.arguments[3:]
    tile = backward_tile(problem.latents_NC.shape[1], table_dtype)
    blocks = triton.cdiv(num_tokens, tile.block_n)
    launch_blocks = max(1, min(blocks, _PARTIAL_BYTES // (4 * problem.codebook_KC.numel())))
    code_blocks = triton.cdiv(num_codes, tile.block_k)
    splits = num_splits(launch_blocks, min(code_blocks, 64), problem.latents_NC.device)
    codes_per_split = triton.cdiv(code_blocks, splits) * tile.block_k
    return TilePlan(tile, blocks, launch_blocks, splits, codes_per_split)


def score_gradients(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    table_KD: Tensor,
    state: tuple[Tensor, ...],
    out_grad_ND: Tensor,
    *,
    affinity: Affinity,
    temperature: float,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of latents and codebook: ds = p (g.t - g.out) / temperature.

    Codes wider than GRADIENT_WIDTH take the blocked torch path.

    Args:
        state: output, what its dtype does not hold, shift and log mass of the forward.
    """
    inputs = latents_NC, codebook_KC, table_KD
    if latents_NC.shape[1] > GRADIENT_WIDTH:
        return soft_readout_torch.score_gradients(
            *inputs, (), out_grad_ND, affinity=affinity, temperature=temperature, needs=needs
        )
    problem = prepare(latents_NC, codebook_KC, affinity)
    sums = _launch(problem, table_KD.contiguous(), state, out_grad_ND, 1 / temperature, needs[1])
    latents_grad_NC, codebook_grad_KC, column_K = sums
    scale = problem.factor / temperature
    if problem.factor == 2.0:
        codebook_grad_KC -= codebook_KC * column_K[:, None]
    return (
        latents_grad_NC.mul_(scale) if needs[0] else None,
        codebook_grad_KC.mul_(scale) if needs[1] else None,
    )


def _launch(
    problem: Problem,
    table_KD: Tensor,
    state: tuple[Tensor, ...],
    out_grad_ND: Tensor,
    inverse_temperature: float,
    needs_codebook: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Unscaled sum_k ds c_k (N, C), sum_n ds z_n (K, C) and sum_n ds (K,)."""
    latents_NC, codebook_KC = problem.latents_NC, problem.codebook_KC
    out_ND, rest_ND, shift_N, log_mass_N = state
    plan = plan_tiles(problem, table_KD.dtype)
    partials = Partials(
        latents_NC.new_zeros(plan.splits, *latents_NC.shape),
        latents_NC.new_empty(plan.launch_blocks, *codebook_KC.shape),
        latents_NC.new_empty(plan.launch_blocks, len(codebook_KC)),
    )
    codebook_grad_KC, column_K = torch.zeros_like(codebook_KC), torch.zeros_like(problem.bias_K)
    delta_N = _row_products(out_grad_ND, out_ND, rest_ND)
    for first in range(0, plan.blocks, plan.launch_blocks):
        count = min(plan.launch_blocks, plan.blocks - first)
        score_gradient_kernel[(count, plan.splits)](
            problem.arguments,
            (shift_N, log_mass_N),
            table_KD,
            out_grad_ND,
            delta_N,
            *partials,
            first,
            plan.codes_per_split,
            table_KD.shape[1],
            inverse_temperature,
            CODE=problem.constants,
            NEEDS_CODEBOOK=needs_codebook,
            **plan.tile.options,
        )
        if needs_codebook:
            codebook_grad_KC += partials.codebook_BKC[:count].sum(0)
            column_K += partials.column_BK[:count].sum(0)
    return partials.latents_SNC.sum(0), codebook_grad_KC, column_K


def _row_products(left_ND: Tensor, right_ND: Tensor, rest_ND: Tensor) -> Tensor:
    """sum_d left (right + rest) in float32: (N,), without float32 copies of (N, D)."""
    products_N = torch.empty(len(left_ND), dtype=torch.float32, device=left_ND.device)
    row_products_kernel[(triton.cdiv(len(left_ND), 16),)](
        left_ND,
        right_ND,
        rest_ND,
        products_N,
        *left_ND.shape,
        HAS_REST=rest_ND.numel() > 0,
        BLOCK_N=16,
        BLOCK_D=128,
        num_warps=4,
    )
    return products_N
