"""`assign` in Triton: forward statistics and gradients, without atomics.

Each kernel recomputes affinities from (N, C) and (K, C). Tokens outside and codes streamed:
statistics, gradient of the latents. Codes outside and tokens streamed: mean probabilities,
gradient of the codebook. `problem`, `state` and CODE: see tiles_triton.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gear_kernels import assign_torch
from gear_kernels.assignment import Statistics
from gear_kernels.dispatch import GRADIENT_WIDTH, Affinity
from gear_kernels.tiles_triton import (
    Problem,
    load_log_probabilities,
    load_matrix,
    load_scores,
    num_splits,
    prepare,
    score_tile,
)


@triton.jit
def statistics_kernel(
    problem,
    indices_ptr,
    statistics_ptr,
    inverse_entropy_temperature,
    inverse_soft_temperature,
    CODE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Per row: argmax; max u, entropy, and log masses at three temperatures (5, N)."""
    num_rows = problem[3]
    num_codes = problem[4]
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    shift = tl.full([BLOCK_N], -float("inf"), tl.float32)
    best = tl.zeros([BLOCK_N], tl.int32)
    mass = tl.zeros([BLOCK_N], tl.float32)
    weighted = tl.zeros([BLOCK_N], tl.float32)
    mass_soft = tl.zeros([BLOCK_N], tl.float32)
    mass_one = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, num_codes, BLOCK_K):
        scores = load_scores(problem, rows, start + tl.arange(0, BLOCK_K), CODE)
        tile_max, tile_best = tl.max(scores, 1, return_indices=True)
        # Strictly greater: among equals the earlier tile, hence the lowest index, stays.
        best = tl.where(tile_max > shift, start + tile_best, best)
        new_shift = tl.maximum(shift, tile_max)
        moved = shift - new_shift
        shift = new_shift
        scores -= shift[:, None]
        exponents = scores * inverse_entropy_temperature
        weights = tl.exp(exponents)
        # Before the first tile moved is -inf and the mass 0; beyond the last code -inf times 0.
        moved_mass = tl.where(mass > 0, moved * inverse_entropy_temperature * mass, 0.0)
        products = tl.where(weights > 0, weights * exponents, 0.0)
        rescale = tl.exp(moved * inverse_entropy_temperature)
        weighted = (weighted + moved_mass) * rescale + tl.sum(products, 1)
        mass = mass * rescale + tl.sum(weights, 1)
        rescale_soft = tl.exp(moved * inverse_soft_temperature)
        soft_weights = tl.exp(scores * inverse_soft_temperature)
        mass_soft = mass_soft * rescale_soft + tl.sum(soft_weights, 1)
        mass_one = mass_one * tl.exp(moved) + tl.sum(tl.exp(scores), 1)
    inside = rows < num_rows
    # A row of NaN must not leave an index beyond the codebook behind.
    tl.store(indices_ptr + rows, tl.minimum(best, num_codes - 1).to(tl.int64), mask=inside)
    log_mass = tl.log(mass)
    tl.store(statistics_ptr + rows, shift, mask=inside)
    tl.store(statistics_ptr + num_rows + rows, log_mass - weighted / mass, mask=inside)
    tl.store(statistics_ptr + 2 * num_rows + rows, log_mass, mask=inside)
    tl.store(statistics_ptr + 3 * num_rows + rows, tl.log(mass_soft), mask=inside)
    tl.store(statistics_ptr + 4 * num_rows + rows, tl.log(mass_one), mask=inside)


@triton.jit
def mean_kernel(
    problem,
    state,
    partial_ptr,
    rows_per_split,
    inverse_temperature,
    CODE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Per code: sum of probabilities over the rows of this split."""
    num_rows = problem[3]
    num_codes = problem[4]
    codes = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    split = tl.program_id(1)
    total = tl.zeros([BLOCK_K], tl.float32)
    last = tl.minimum((split + 1) * rows_per_split, num_rows)
    for start in range(split * rows_per_split, last, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        log_probabilities = load_log_probabilities(
            problem, state, rows, codes, inverse_temperature, CODE
        )
        total += tl.sum(tl.exp(log_probabilities), 0)
    tl.store(partial_ptr + split * num_codes + codes, total, mask=codes < num_codes)


@triton.jit
def load_pull(problem, state, grads, rows, codes, inverse_temperature, CODE: tl.constexpr):
    """p, and q = dL/d(mean p)_k - dL/dH log p (0 where p is 0), for (rows, codes)."""
    entropy_grad_ptr, mean_grad_ptr = grads
    log_probabilities = load_log_probabilities(
        problem, state, rows, codes, inverse_temperature, CODE
    )
    finite = tl.where(log_probabilities > -float("inf"), log_probabilities, 0.0)
    mean_grad = tl.load(mean_grad_ptr + codes, mask=codes < problem[4], other=0.0)
    pull = mean_grad[None, :] - tl.load(entropy_grad_ptr) * finite
    return tl.exp(log_probabilities), pull


@triton.jit
def latents_gradient_kernel(
    problem,
    state,
    grads,
    centre_ptr,
    grad_ptr,
    inverse_temperature,
    CODE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Per row: centre = sum_k p q, then sum_k p (q - centre) c_k (unscaled)."""
    WIDTH: tl.constexpr = CODE[0]
    BLOCK_C: tl.constexpr = CODE[3]
    num_codes = problem[4]
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = rows < problem[3]
    centre = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, num_codes, BLOCK_K):
        codes = start + tl.arange(0, BLOCK_K)
        p, pull = load_pull(problem, state, grads, rows, codes, inverse_temperature, CODE)
        centre += tl.sum(p * pull, 1)
    tl.store(centre_ptr + rows, centre, mask=inside)
    gradient = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    for start in range(0, num_codes, BLOCK_K):
        codes = start + tl.arange(0, BLOCK_K)
        p, pull = load_pull(problem, state, grads, rows, codes, inverse_temperature, CODE)
        code_tile = load_matrix(problem[1], codes, num_codes, 0, WIDTH, BLOCK_C)
        gradient += tl.dot(p * (pull - centre[:, None]), code_tile, input_precision="ieee")
    columns = tl.arange(0, BLOCK_C)
    offsets = rows[:, None] * WIDTH + columns[None, :]
    tl.store(grad_ptr + offsets, gradient, mask=inside[:, None] & (columns[None, :] < WIDTH))


@triton.jit
def codebook_gradient_kernel(
    problem,
    state,
    grads,
    centre_ptr,
    partial_ptr,
    column_ptr,
    rows_per_split,
    inverse_temperature,
    CODE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Per code: sum over this split's rows of ds z_n and of ds (unscaled)."""
    WIDTH: tl.constexpr = CODE[0]
    BLOCK_C: tl.constexpr = CODE[3]
    num_rows = problem[3]
    num_codes = problem[4]
    codes = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    split = tl.program_id(1)
    gradient = tl.zeros([BLOCK_K, BLOCK_C], tl.float32)
    column = tl.zeros([BLOCK_K], tl.float32)
    last = tl.minimum((split + 1) * rows_per_split, num_rows)
    for start in range(split * rows_per_split, last, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        p, pull = load_pull(problem, state, grads, rows, codes, inverse_temperature, CODE)
        centre = tl.load(centre_ptr + rows, mask=rows < num_rows, other=0.0)
        scores_grad = p * (pull - centre[:, None])
        latents = load_matrix(problem[0], rows, num_rows, 0, WIDTH, BLOCK_C)
        gradient += tl.dot(tl.trans(scores_grad), latents, input_precision="ieee")
        column += tl.sum(scores_grad, 0)
    columns = tl.arange(0, BLOCK_C)
    first = split.to(tl.int64) * num_codes
    offsets = (first + codes[:, None]) * WIDTH + columns[None, :]
    mask = (codes[:, None] < num_codes) & (columns[None, :] < WIDTH)
    tl.store(partial_ptr + offsets, gradient, mask=mask)
    tl.store(column_ptr + first + codes, column, mask=codes < num_codes)


def statistics(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    affinity: Affinity,
    entropy_temperature: float,
    soft_temperature: float,
) -> Statistics:
    """Per-token statistics and the mean probabilities, see assign_torch."""
    problem = prepare(latents_NC, codebook_KC, affinity)
    launch = _Launch(problem)
    num_tokens, num_codes = len(latents_NC), len(codebook_KC)
    indices_N = torch.empty(num_tokens, dtype=torch.int64, device=latents_NC.device)
    columns_5N = latents_NC.new_empty(5, num_tokens)
    inverse_temperatures = 1 / entropy_temperature, 1 / soft_temperature
    statistics_kernel[launch.over_rows](
        problem.arguments, indices_N, columns_5N, *inverse_temperatures, **launch.options
    )
    shift_N, entropy_N, log_mass_N, log_mass_soft_N, log_mass_one_N = columns_5N
    partial_SK = latents_NC.new_empty(launch.splits, num_codes)
    mean_kernel[launch.over_codes](
        problem.arguments,
        (shift_N, log_mass_N),
        partial_SK,
        launch.rows_per_split,
        1 / entropy_temperature,
        **launch.options,
    )
    return Statistics(
        indices_N=indices_N,
        shift_N=shift_N,
        affinity_N=shift_N + problem.row_term(),
        entropy_N=entropy_N,
        log_mass_N=log_mass_N,
        log_mass_soft_N=log_mass_soft_N,
        log_mass_one_N=log_mass_one_N,
        mean_probabilities_K=partial_SK.sum(0) / num_tokens,
    )


def gradients(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    shift_N: Tensor,
    log_mass_N: Tensor,
    entropy_grad: Tensor | None,
    mean_grad_K: Tensor | None,
    *,
    affinity: Affinity,
    temperature: float,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of latents and codebook, see assign_torch; wide codes take its path."""
    if latents_NC.shape[1] > GRADIENT_WIDTH:
        inputs = latents_NC, codebook_KC, shift_N, log_mass_N, entropy_grad, mean_grad_K
        return assign_torch.gradients(
            *inputs, affinity=affinity, temperature=temperature, needs=needs
        )
    problem = prepare(latents_NC, codebook_KC, affinity)
    launch = _Launch(problem)
    grads = (
        latents_NC.new_zeros(()) if entropy_grad is None else entropy_grad.contiguous(),
        torch.zeros_like(problem.bias_K) if mean_grad_K is None else mean_grad_K.contiguous(),
    )
    arguments = problem.arguments, (shift_N, log_mass_N), grads
    centre_N, latents_grad_NC = torch.empty_like(shift_N), torch.empty_like(latents_NC)
    latents_gradient_kernel[launch.over_rows](
        *arguments, centre_N, latents_grad_NC, 1 / temperature, **launch.options
    )
    scale = problem.factor / (len(latents_NC) * temperature)
    latents_grad = latents_grad_NC.mul_(scale) if needs[0] else None
    if not needs[1]:
        return latents_grad, None
    partial_SKC = latents_NC.new_empty(launch.splits, *codebook_KC.shape)
    column_SK = latents_NC.new_empty(launch.splits, len(codebook_KC))
    codebook_gradient_kernel[launch.over_codes](
        *arguments,
        centre_N,
        partial_SKC,
        column_SK,
        launch.rows_per_split,
        1 / temperature,
        **launch.options,
    )
    codebook_grad_KC = partial_SKC.sum(0)
    if problem.factor == 2.0:
        codebook_grad_KC -= codebook_KC * column_SK.sum(0)[:, None]
    return latents_grad, codebook_grad_KC.mul_(scale)


class _Launch:
    """Grids and compile-time arguments for one problem."""

    def __init__(self, problem: Problem) -> None:
        num_rows, num_codes = problem.arguments[3:]
        tile = score_tile(problem.latents_NC.shape[1])
        row_blocks = triton.cdiv(num_rows, tile.block_n)
        code_blocks = triton.cdiv(num_codes, tile.block_k)
        self.splits = num_splits(code_blocks, min(row_blocks, 8), problem.latents_NC.device)
        self.rows_per_split = triton.cdiv(row_blocks, self.splits) * tile.block_n
        self.over_rows = (row_blocks,)
        self.over_codes = (code_blocks, self.splits)
        self.options = {
            "CODE": problem.constants,
            "BLOCK_N": tile.block_n,
            "BLOCK_K": tile.block_k,
            "num_warps": tile.num_warps,
        }
