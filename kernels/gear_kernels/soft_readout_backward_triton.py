"""Gradient of a soft read-out with respect to affinities, in Triton: for latents and codebook.

One contraction g.t a (token, code) pair serves both gradients: a program owns a block of rows and
a range of codes, keeps its rows' latent gradient in registers, and writes the codebook's as partial
sums, which are added afterwards in a fixed order. No atomics.

Or the library contracts g.t for a chunk of codes at a time, into a buffer of the size of a GPU's
L2 cache: the programs would read rows of g and t from there once for each of their tiles. Which of
the two: `dispatch.readout_backward`. How the work is cut: soft_readout_backward_plan.py.
`problem`, `state` and CODE: see tiles_triton.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gear_kernels import soft_readout_torch
from gear_kernels.dispatch import GRADIENT_WIDTH, Affinity
from gear_kernels.soft_readout_backward_plan import Part, Partials, TilePlan, parts, plan_tiles
from gear_kernels.tiles_triton import Problem, load_log_probabilities, load_matrix, prepare


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
    part,
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
    With GIVEN_PULL `out_grad_ptr` is g.t itself, (rows of the launch, codes of the chunk), and the
    table is not read.

    Args:
        part: (first row block, first code and number of codes of the chunk, first place of the
            chunk among the partial sums, their number of codes).
    """
    first_block, first_code, chunk_codes, first_place, partial_codes = part
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
            launch_rows = block * BLOCK_N + tl.arange(0, BLOCK_N)
            left_rows = num_rows - first_block * BLOCK_N
            pull = load_matrix(out_grad_ptr, launch_rows, left_rows, start, chunk_codes, BLOCK_K)
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
            targets = block.to(tl.int64) * partial_codes + first_place + places
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
    plan = plan_tiles(problem, table_KD)
    partials = Partials.of(plan, latents_NC)
    codebook_grad_KC, column_K = torch.zeros_like(codebook_KC), torch.zeros_like(problem.bias_K)
    delta_N = _row_products(out_grad_ND, out_ND, rest_ND)
    pull = Pull(plan, table_KD, out_grad_ND) if plan.chunked else None
    for part in parts(plan, len(latents_NC), len(codebook_KC)):
        score_gradient_kernel[(part.blocks, plan.splits)](
            problem.arguments,
            (shift_N, log_mass_N),
            table_KD,
            out_grad_ND if pull is None else pull.of(part),
            delta_N,
            *partials,
            part.arguments(plan),
            plan.codes_per_split,
            table_KD.shape[1],
            inverse_temperature,
            CODE=problem.constants,
            NEEDS_CODEBOOK=needs_codebook,
            GIVEN_PULL=plan.chunked,
            **plan.tile.options,
        )
        if needs_codebook and part.is_last:
            codes = slice(part.first_of_group, part.first_code + part.codes)
            count = codes.stop - codes.start
            codebook_grad_KC[codes] += partials.codebook_BkC[: part.blocks, :count].sum(0)
            column_K[codes] += partials.column_Bk[: part.blocks, :count].sum(0)
    return partials.latents_SNC.sum(0), codebook_grad_KC, column_K


class Pull:
    """g.t of a part's rows and codes by the library, in memory that all parts share."""

    def __init__(self, plan: TilePlan, table_KD: Tensor, out_grad_ND: Tensor) -> None:
        self.table_KD = table_KD
        self.out_grad_ND = out_grad_ND.to(table_KD.dtype)
        rows = min(len(out_grad_ND), plan.launch_blocks * plan.tile.block_n)
        self.block_n = plan.tile.block_n
        self.memory = table_KD.new_empty(rows * plan.chunk_codes, dtype=torch.float32)

    def of(self, part: Part) -> Tensor:
        """(rows, codes) in float32; what the last part's held is gone."""
        first = part.first_block * self.block_n
        left_nD = self.out_grad_ND[first : first + part.blocks * self.block_n]
        right_kD = self.table_KD[part.first_code : part.first_code + part.codes]
        size = len(left_nD), len(right_kD)
        return product_into(self.memory[: size[0] * size[1]].view(size), left_nD, right_kD.T)


def product_into(out: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """out = left @ right, summed and kept in float32; bfloat16 ones multiplied as such on CUDA.

    Rounded to their dtype, g.t would not cancel against g.out, which is exact: the gradient's error
    would be beyond what torch's own has.
    """
    if out.device.type == "cuda" and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32, out=out)
    return torch.mm(left.float(), right.float(), out=out)


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
