"""Gradient of a soft read-out with respect to affinities, in Triton: for latents and codebook.

One contraction g.t a (token, code) pair serves both gradients: a program owns a block of rows and
a range of codes, keeps its rows' latent gradient in registers, and writes the codebook's as partial
sums, which are added afterwards in a fixed order. No atomics.

Of wide half-precision tables the library contracts g.t for a chunk of codes at a time, into a
buffer that fits in a GPU's L2 cache: the programs would read rows of g and t from there once for
each of their tiles, which by count takes longer than all else.
`problem`, `state` and CODE: see tiles_triton.py.
"""

from collections.abc import Iterator
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
# g.t of a chunk of codes: what an A100's L2 cache (40 MB) holds beside the rest.
_PULL_BYTES = 2**25
CHUNKED_COLUMNS = 1024
"""Columns from which on the library contracts half-precision tables; by count, docs/LOG.md."""


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
    first_code,
    chunk_codes,
    codes_per_split,
    num_columns,
    inverse_temperature,
    CODE: tl.constexpr,
    NEEDS_CODEBOOK: tl.constexpr,
    GIVEN_PULL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """ds = p (g.t - delta) for a row block and the codes of a split of the chunk.

    Adds sum_k ds c_k per (split, row), and writes per (row block of this launch, code of the chunk)
    the sums of ds z_n and of ds: partial sums, added afterwards in a fixed order (all unscaled).
    With GIVEN_PULL `out_grad_ptr` is g.t itself, (rows, codes of the chunk), and there is no table.
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
    sums_ptr = latents_partial_ptr + split.to(tl.int64) * num_rows * WIDTH
    gradient = load_matrix(sums_ptr, rows, num_rows, 0, WIDTH, BLOCK_C)
    last = tl.minimum((split + 1) * codes_per_split, chunk_codes)
    for start in range(split * codes_per_split, last, BLOCK_K):
        places = start + tl.arange(0, BLOCK_K)
        codes = first_code + places
        if GIVEN_PULL:
            pull = load_matrix(out_grad_ptr, rows, num_rows, start, chunk_codes, BLOCK_K)
        else:
            pull = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
            for first_column in range(0, num_columns, BLOCK_D):
                out_grad = load_matrix(
                    out_grad_ptr, rows, num_rows, first_column, num_columns, BLOCK_D
                )
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
            targets = block.to(tl.int64) * chunk_codes + places
            mask = (places[:, None] < chunk_codes) & (columns[None, :] < WIDTH)
            offsets = targets[:, None] * WIDTH + columns[None, :]
            tl.store(codebook_partial_ptr + offsets, partial, mask=mask)
            column = tl.sum(scores_grad, 0)
            tl.store(column_partial_ptr + targets, column, mask=places < chunk_codes)
    offsets = rows[:, None] * WIDTH + columns[None, :]
    mask = inside[:, None] & (columns[None, :] < WIDTH)
    tl.store(sums_ptr + offsets, gradient, mask=mask)


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


def chunk_tile(width: int) -> ReadoutTile:
    """The same where g.t is given: without spills, by the assembler's report for both widths."""
    return ReadoutTile(128, 64, 64, 8, 2) if width <= 16 else ReadoutTile(64, 64, 64, 8, 1)


class Partials(NamedTuple):
    """Partial sums that the launches write: S splits of the codes, B row blocks of a launch, k
    codes of a chunk."""

    latents_SNC: Tensor
    codebook_BkC: Tensor
    column_Bk: Tensor


class TilePlan(NamedTuple):
    """How the work is cut."""

    tile: ReadoutTile
    chunk_codes: int
    """Codes of a chunk: all, where the kernel contracts g.t itself."""
    blocks: int
    """Row blocks in all."""
    launch_blocks: int
    """Row blocks of one launch: as many as their partial codebook gradients may take memory."""
    splits: int
    codes_per_split: int


def takes_chunks(table_KD: Tensor) -> bool:
    """Whether the library contracts g.t: by count it wins where rows are wide, and in the dtypes
    that a GPU's matrix units take."""
    return table_KD.dtype != torch.float32 and table_KD.shape[1] >= CHUNKED_COLUMNS


def plan_tiles(problem: Problem, table_KD: Tensor) -> TilePlan:
    """The cut for one problem on its device."""
    num_tokens, width = problem.latents_NC.shape
    num_codes = len(problem.codebook_KC)
    tile, chunk_codes = backward_tile(width, table_KD.dtype), num_codes
    if takes_chunks(table_KD):
        tile = chunk_tile(width)
        fitting = _PULL_BYTES // (4 * num_tokens)
        chunk_codes = min(num_codes, max(1, fitting // tile.block_k) * tile.block_k)
    blocks = triton.cdiv(num_tokens, tile.block_n)
    launch_blocks = max(1, min(blocks, _PARTIAL_BYTES // (4 * chunk_codes * width)))
    code_blocks = triton.cdiv(chunk_codes, tile.block_k)
    splits = num_splits(launch_blocks, min(code_blocks, 64), problem.latents_NC.device)
    codes_per_split = triton.cdiv(code_blocks, splits) * tile.block_k
    return TilePlan(tile, chunk_codes, blocks, launch_blocks, splits, codes_per_split)


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
    num_codes, width = codebook_KC.shape
    out_ND, rest_ND, shift_N, log_mass_N = state
    plan = plan_tiles(problem, table_KD)
    partials = Partials(
        latents_NC.new_zeros(plan.splits, *latents_NC.shape),
        latents_NC.new_empty(plan.launch_blocks, plan.chunk_codes, width),
        latents_NC.new_empty(plan.launch_blocks, plan.chunk_codes),
    )
    codebook_grad_KC, column_K = torch.zeros_like(codebook_KC), torch.zeros_like(problem.bias_K)
    delta_N = _row_products(out_grad_ND, out_ND, rest_ND)
    for first_code, pull in _chunks(table_KD, out_grad_ND, plan.chunk_codes):
        count = min(plan.chunk_codes, num_codes - first_code)
        for first_block in range(0, plan.blocks, plan.launch_blocks):
            blocks = min(plan.launch_blocks, plan.blocks - first_block)
            score_gradient_kernel[(blocks, plan.splits)](
                problem.arguments,
                (shift_N, log_mass_N),
                table_KD,
                out_grad_ND if pull is None else pull,
                delta_N,
                *partials,
                first_block,
                first_code,
                count,
                plan.codes_per_split,
                table_KD.shape[1],
                inverse_temperature,
                CODE=problem.constants,
                NEEDS_CODEBOOK=needs_codebook,
                GIVEN_PULL=pull is not None,
                **plan.tile.options,
            )
            if needs_codebook:
                codes = slice(first_code, first_code + count)
                codebook_BkC, column_Bk = _of_chunk(partials, blocks, count)
                codebook_grad_KC[codes] += codebook_BkC.sum(0)
                column_K[codes] += column_Bk.sum(0)
    return partials.latents_SNC.sum(0), codebook_grad_KC, column_K


def _chunks(
    table_KD: Tensor, out_grad_ND: Tensor, chunk_codes: int
) -> Iterator[tuple[int, Tensor | None]]:
    """First code of each chunk with g.t of its codes (N, k), in memory that all chunks share; None:
    the kernel contracts it."""
    if not takes_chunks(table_KD):
        yield 0, None
        return
    memory = table_KD.new_empty(len(out_grad_ND) * chunk_codes, dtype=torch.float32)
    left_ND = out_grad_ND.to(table_KD.dtype)
    for first in range(0, len(table_KD), chunk_codes):
        rows_kD = table_KD[first : first + chunk_codes]
        pull_Nk = memory[: len(left_ND) * len(rows_kD)].view(len(left_ND), len(rows_kD))
        yield first, product_into(pull_Nk, left_ND, rows_kD.T)


def product_into(out: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """out = left @ right of half-precision operands, summed and kept in float32.

    Rounded to their dtype, g.t would not cancel against g.out, which is exact: the gradient's error
    would be beyond what torch's own has.
    """
    if out.device.type == "cuda":
        return torch.mm(left, right, out_dtype=torch.float32, out=out)
    return torch.mm(left.float(), right.float(), out=out)


def _of_chunk(partials: Partials, blocks: int, codes: int) -> tuple[Tensor, Tensor]:
    """The part of the codebook's partial sums that a launch has written; the last chunk's rows lie
    as close as its codes are many."""
    width = partials.codebook_BkC.shape[2]
    codebook = partials.codebook_BkC.view(-1)[: blocks * codes * width]
    column = partials.column_Bk.view(-1)[: blocks * codes]
    return codebook.view(blocks, codes, width), column.view(blocks, codes)


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
