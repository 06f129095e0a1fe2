"""`soft_readout` in Triton: streamed over codes like attention, without atomics.

The row maximum or a log-sum-exp is known before the table is read, so no accumulator is rescaled;
the mass is summed along and divides at the end, which makes an inexact log-sum-exp harmless. D is
wide, so it is cut in blocks, each of which recomputes the (cheap) affinities.
`problem`, `state` and CODE: see tiles_triton.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gear_kernels.dispatch import GRADIENT_WIDTH, Affinity
from gear_kernels.soft_readout_backward_triton import score_gradients
from gear_kernels.soft_readout_state import empty_rest
from gear_kernels.tiles_triton import (
    Problem,
    ReadoutTile,
    load_matrix,
    load_scores,
    prepare,
    score_tile,
)

__all__ = ["forward", "score_gradients", "softmax_state"]


@triton.jit
def shift_kernel(
    problem, shift_ptr, CODE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    """Per row: max_k u."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    shift = tl.full([BLOCK_N], -float("inf"), tl.float32)
    for start in range(0, problem[4], BLOCK_K):
        scores = load_scores(problem, rows, start + tl.arange(0, BLOCK_K), CODE)
        shift = tl.maximum(shift, tl.max(scores, 1))
    tl.store(shift_ptr + rows, shift, mask=rows < problem[3])


@triton.jit
def readout_kernel(
    problem,
    shift_ptr,
    table_ptr,
    out_ptr,
    rest_ptr,
    log_mass_ptr,
    num_columns,
    inverse_temperature,
    CODE: tl.constexpr,
    HAS_REST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out = sum_k exp((u - shift) / temperature) table_k / mass for (rows, columns of D).

    And what out's dtype does not hold of it, for the backward.
    """
    num_rows = problem[3]
    num_codes = problem[4]
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    first_column = tl.program_id(1) * BLOCK_D
    inside = rows < num_rows
    shift = tl.load(shift_ptr + rows, mask=inside, other=0.0)
    mass = tl.zeros([BLOCK_N], tl.float32)
    out = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for start in range(0, num_codes, BLOCK_K):
        codes = start + tl.arange(0, BLOCK_K)
        scores = load_scores(problem, rows, codes, CODE)
        weights = tl.exp((scores - shift[:, None]) * inverse_temperature)
        mass += tl.sum(weights, 1)
        tile = load_matrix(table_ptr, codes, num_codes, first_column, num_columns, BLOCK_D)
        out += tl.dot(weights.to(tile.dtype), tile, input_precision="ieee")
    out = out / mass[:, None]
    columns = first_column + tl.arange(0, BLOCK_D)
    offsets = rows[:, None].to(tl.int64) * num_columns + columns[None, :]
    mask = inside[:, None] & (columns[None, :] < num_columns)
    rounded = out.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + offsets, rounded, mask=mask)
    if HAS_REST:
        rest = (out - rounded.to(tl.float32)).to(out_ptr.dtype.element_ty)
        tl.store(rest_ptr + offsets, rest, mask=mask)
    if tl.program_id(1) == 0:
        tl.store(log_mass_ptr + rows, tl.log(mass), mask=inside)


def forward_tile(width: int, dtype: torch.dtype) -> ReadoutTile:
    """Tile of the read-out; float32 tables go through plain multiply-adds, so theirs are small."""
    if dtype == torch.float32:
        return ReadoutTile(64, 32, 64, 8, 2)
    if width <= 16:
        return ReadoutTile(128, 32, 256, 8, 3)
    return ReadoutTile(64, 32, 256, 8, 3) if width <= 64 else ReadoutTile(64, 64, 256, 8, 2)


def forward(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    table_KD: Tensor,
    log_sum_exp_N: Tensor | None,
    *,
    affinity: Affinity,
    temperature: float,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """softmax(s / temperature) @ table, (N, D); and output, its rest, shift, log mass to keep."""
    problem = prepare(latents_NC, codebook_KC, affinity)
    table_KD = table_KD.contiguous()
    shift_N = _shift(problem, log_sum_exp_N, temperature)
    num_tokens, num_columns = len(latents_NC), table_KD.shape[1]
    out_ND, rest_ND = table_KD.new_empty(num_tokens, num_columns), empty_rest(table_KD, num_tokens)
    log_mass_N = torch.empty_like(shift_N)
    tile = forward_tile(latents_NC.shape[1], table_KD.dtype)
    grid = triton.cdiv(num_tokens, tile.block_n), triton.cdiv(num_columns, tile.block_d)
    readout_kernel[grid](
        problem.arguments,
        shift_N,
        table_KD,
        out_ND,
        rest_ND,
        log_mass_N,
        num_columns,
        1 / temperature,
        CODE=problem.constants,
        HAS_REST=rest_ND.numel() > 0,
        **tile.options,
    )
    return out_ND, (out_ND, rest_ND, shift_N, log_mass_N)


def softmax_state(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    table_KD: Tensor,
    log_sum_exp_N: Tensor | None,
    *,
    affinity: Affinity,
    temperature: float,
) -> tuple[Tensor, ...]:
    """What `score_gradients` needs where no forward ran: that forward's, run now."""
    if latents_NC.shape[1] > GRADIENT_WIDTH:
        return ()
    return forward(
        latents_NC,
        codebook_KC,
        table_KD,
        log_sum_exp_N,
        affinity=affinity,
        temperature=temperature,
    )[1]


def _shift(problem: Problem, log_sum_exp_N: Tensor | None, temperature: float) -> Tensor:
    """Row shift in units of u, near its maximum: from the log-sum-exp, or a pass over the codes."""
    if log_sum_exp_N is not None:
        return (log_sum_exp_N.float() * temperature - problem.row_term()).contiguous()
    shift_N = torch.empty_like(problem.latents_NC[:, 0])
    tile = score_tile(problem.latents_NC.shape[1])
    shift_kernel[(triton.cdiv(len(shift_N), tile.block_n),)](
        problem.arguments,
        shift_N,
        CODE=problem.constants,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        num_warps=tile.num_warps,
    )
    return shift_N
