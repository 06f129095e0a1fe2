"""`soft_readout` in Triton: streamed over codes like attention, without atomics.

The row maximum or a log-sum-exp is known before the table is read, so no accumulator is rescaled;
the mass is summed along and divides at the end, which makes an inexact log-sum-exp harmless. D is
wide, so it is cut in blocks, each of which recomputes the (cheap) affinities.
`problem`, `state` and CODE: see tiles_triton.py.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gear_kernels import soft_readout_torch
from gear_kernels.dispatch import Affinity
from gear_kernels.tiles_triton import (
    GRADIENT_WIDTH,
    Problem,
    load_log_probabilities,
    load_matrix,
    load_scores,
    num_splits,
    prepare,
    score_tile,
)

# Partial gradients of the codebook, one a row block, that a launch may write.
_PARTIAL_BYTES = 2**26


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
    log_mass_ptr,
    num_columns,
    inverse_temperature,
    CODE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out = sum_k exp((u - shift) / temperature) table_k / mass for (rows, columns of D)."""
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
    tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask=mask)
    if tl.program_id(1) == 0:
        tl.store(log_mass_ptr + rows, tl.log(mass), mask=inside)


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
    BLOCK_C: tl.constexpr = CODE[1]
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
    products_ptr,
    num_rows,
    num_columns,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Per row: sum over columns of left times right, in float32."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, num_columns, BLOCK_D):
        left = load_matrix(left_ptr, rows, num_rows, first, num_columns, BLOCK_D)
        right = load_matrix(right_ptr, rows, num_rows, first, num_columns, BLOCK_D)
        total += tl.sum(left.to(tl.float32) * right.to(tl.float32), 1)
    tl.store(products_ptr + rows, total, mask=rows < num_rows)


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


def forward_tile(width: int, dtype: torch.dtype) -> ReadoutTile:
    """Tile of the read-out; float32 tables go through plain multiply-adds, so theirs are small."""
    if dtype == torch.float32:
        return ReadoutTile(64, 32, 64, 8, 2)
    return ReadoutTile(128, 32, 256, 8, 3) if width <= 64 else ReadoutTile(64, 64, 256, 8, 2)


def backward_tile(dtype: torch.dtype) -> ReadoutTile:
    """Tile of the gradient of the scores."""
    if dtype == torch.float32:
        return ReadoutTile(64, 64, 32, 8, 2)
    return ReadoutTile(128, 64, 64, 8, 3)


def forward(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    table_KD: Tensor,
    log_sum_exp_N: Tensor | None,
    *,
    affinity: Affinity,
    temperature: float,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """softmax(s / temperature) @ table, (N, D); and output, shift, log mass for the backward."""
    problem = prepare(latents_NC, codebook_KC, affinity)
    table_KD = table_KD.contiguous()
    shift_N = _shift(problem, log_sum_exp_N, temperature)
    num_tokens, num_columns = len(latents_NC), table_KD.shape[1]
    out_ND = table_KD.new_empty(num_tokens, num_columns)
    log_mass_N = torch.empty_like(shift_N)
    tile = forward_tile(latents_NC.shape[1], table_KD.dtype)
    grid = triton.cdiv(num_tokens, tile.block_n), triton.cdiv(num_columns, tile.block_d)
    readout_kernel[grid](
        problem.arguments,
        shift_N,
        table_KD,
        out_ND,
        log_mass_N,
        num_columns,
        1 / temperature,
        CODE=problem.constants,
        **tile.options,
    )
    return out_ND, (out_ND, shift_N, log_mass_N)


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
    """
    if latents_NC.shape[1] > GRADIENT_WIDTH:
        return soft_readout_torch.score_gradients(
            latents_NC,
            codebook_KC,
            table_KD,
            (),
            out_grad_ND,
            affinity=affinity,
            temperature=temperature,
            needs=needs,
        )
    problem = prepare(latents_NC, codebook_KC, affinity)
    out_ND, shift_N, log_mass_N = state
    num_tokens, num_codes = len(latents_NC), len(codebook_KC)
    tile = backward_tile(table_KD.dtype)
    blocks = triton.cdiv(num_tokens, tile.block_n)
    launch_blocks = max(1, min(blocks, _PARTIAL_BYTES // (4 * codebook_KC.numel())))
    code_blocks = triton.cdiv(num_codes, tile.block_k)
    splits = num_splits(launch_blocks, min(code_blocks, 64), latents_NC.device)
    latents_partial_SNC = latents_NC.new_zeros(splits, *latents_NC.shape)
    codebook_partial_BKC = latents_NC.new_empty(launch_blocks, *codebook_KC.shape)
    column_partial_BK = latents_NC.new_empty(launch_blocks, num_codes)
    codebook_grad_KC = torch.zeros_like(codebook_KC)
    column_K = torch.zeros_like(problem.bias_K)
    delta_N = _row_products(out_grad_ND, out_ND)
    for first in range(0, blocks, launch_blocks):
        count = min(launch_blocks, blocks - first)
        score_gradient_kernel[(count, splits)](
            problem.arguments,
            (shift_N, log_mass_N),
            table_KD.contiguous(),
            out_grad_ND,
            delta_N,
            latents_partial_SNC,
            codebook_partial_BKC,
            column_partial_BK,
            first,
            triton.cdiv(code_blocks, splits) * tile.block_k,
            table_KD.shape[1],
            1 / temperature,
            CODE=problem.constants,
            NEEDS_CODEBOOK=needs[1],
            **tile.options,
        )
        if needs[1]:
            codebook_grad_KC += codebook_partial_BKC[:count].sum(0)
            column_K += column_partial_BK[:count].sum(0)
    scale = problem.factor / temperature
    latents_grad = latents_partial_SNC.sum(0).mul_(scale) if needs[0] else None
    if not needs[1]:
        return latents_grad, None
    if problem.factor == 2.0:
        codebook_grad_KC -= codebook_KC * column_K[:, None]
    return latents_grad, codebook_grad_KC.mul_(scale)


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


def _row_products(left_ND: Tensor, right_ND: Tensor) -> Tensor:
    """sum_d left right in float32: (N,), without float32 copies of (N, D)."""
    products_N = torch.empty(len(left_ND), dtype=torch.float32, device=left_ND.device)
    row_products_kernel[(triton.cdiv(len(left_ND), 16),)](
        left_ND, right_ND, products_N, *left_ND.shape, BLOCK_N=16, BLOCK_D=128, num_warps=4
    )
    return products_N
