"""Row blocks of the torch path: (n, K) tiles that stay in cache in place of the (N, K) matrix.

A block holds all codes of a few rows, so every softmax is an ordinary one and no statistic has
to be streamed. Shapes: n rows of a block, N tokens, K codes, C code width.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from gear_kernels.dispatch import Affinity

# 8 MiB of float32: measured on CPU, smaller starves the products of rows, larger leaves the cache.
_CPU_TILE_ELEMENTS = 2**21
# 32 MiB of float32, of which a few are alive at a time: rows enough to fill a GPU's products.
_GPU_TILE_ELEMENTS = 2**23
_MIN_ROWS = 16
# exp(-60) is 1e-26 of a row's maximum: nothing to float64's sums, and still normal after the
# products of a backward. Denormal numbers make a CPU's exp 50 times slower.
EXPONENT_FLOOR = -60.0
# Odd 64-bit multipliers (of splitmix64, as signed integers).
_MIX = (-0x61C8864680B583EB, -0x40A7B892E31B1A47)
# Columns hashed at a time, so that 64-bit copies stay small.
_HASH_COLUMNS = 16
_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


def block_rows(num_codes: int, device: torch.device) -> int:
    """Rows of a block: as many as fit the device's budget, at least 16."""
    budget = _CPU_TILE_ELEMENTS if device.type == "cpu" else _GPU_TILE_ELEMENTS
    return max(_MIN_ROWS, budget // num_codes)


def row_blocks(
    num_rows: int, num_codes: int, like: Tensor, num_tiles: int
) -> Iterator[tuple[slice, list[Tensor]]]:
    """Slices of rows, each with uninitialised (n, K) tiles of `like`'s dtype.

    All blocks share the tiles' memory: fresh tiles cost page faults, and more memory than they
    hold, because the allocator keeps what it cannot hand back.
    """
    rows = min(block_rows(num_codes, like.device), num_rows)
    tiles = [like.new_empty(rows, num_codes) for _ in range(num_tiles)]
    for start in range(0, num_rows, rows):
        stop = min(start + rows, num_rows)
        yield slice(start, stop), [tile[: stop - start] for tile in tiles]


def product_into(out: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """out = left @ right, through a copy where `out` has another dtype."""
    if out.dtype == left.dtype:
        return torch.mm(left, right, out=out)
    return out.copy_(left @ right)


class Scorer:
    """Affinity tiles of one codebook, up to the term -|z|^2 that is common to a row.

    Args:
        codebook_KC: codes in the compute dtype.
        affinity: the score.
        temperature: what the scores are divided by.
    """

    def __init__(self, codebook_KC: Tensor, affinity: Affinity, temperature: float = 1.0) -> None:
        self.codebook_KC = codebook_KC
        self.squared = affinity == Affinity.SQUARED_DISTANCE
        self.scale = (2 if self.squared else 1) / temperature
        self.bias_K = -codebook_KC.square().sum(1) / temperature if self.squared else None

    def tile(self, latents_nC: Tensor, out_nK: Tensor) -> Tensor:
        """(s + |z|^2) / temperature, or z.c / temperature, in `out_nK`."""
        codes_CK = self.codebook_KC.T
        if self.bias_K is None:
            return torch.mm(latents_nC * self.scale, codes_CK, out=out_nK)
        return torch.addmm(self.bias_K, latents_nC, codes_CK, alpha=self.scale, out=out_nK)

    def row_term(self, latents_NC: Tensor) -> Tensor | float:
        """What `tile` leaves out of s at temperature 1: -|z|^2 (N,), or 0."""
        return -latents_NC.square().sum(1) if self.squared else 0.0


class ScoreGradient:
    """Turns gradients of (n, K) score tiles into those of latents and codebook.

    With sum_k ds[n, k] = 0, as for every function of a softmax, the terms -|z|^2 drop out:
    dz = f ds @ c and dc = f (ds^T z - c sum_n ds), f = 2, second term for squared distances only.
    """

    def __init__(self, latents_NC: Tensor, scorer: Scorer, needs: tuple[bool, bool]) -> None:
        self.latents_NC, self.scorer = latents_NC, scorer
        codebook_KC = scorer.codebook_KC
        self.latents_grad_NC = torch.empty_like(latents_NC) if needs[0] else None
        self.codebook_grad_KC = torch.zeros_like(codebook_KC) if needs[1] else None
        self.column_sums_K = codebook_KC.new_zeros(codebook_KC.shape[0])

    def add(self, rows: slice, scores_grad_nK: Tensor) -> None:
        """Account for one tile."""
        if self.latents_grad_NC is not None:
            torch.mm(scores_grad_nK, self.scorer.codebook_KC, out=self.latents_grad_NC[rows])
        if self.codebook_grad_KC is not None:
            self.codebook_grad_KC.addmm_(scores_grad_nK.T, self.latents_NC[rows])
            if self.scorer.squared:
                self.column_sums_K += scores_grad_nK.sum(0)

    def finish(self, factor: float) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of latents and codebook, times `factor`; None where not needed."""
        latents_grad, codebook_grad = self.latents_grad_NC, self.codebook_grad_KC
        if codebook_grad is not None and self.scorer.squared:
            codebook_grad.sub_(self.scorer.codebook_KC * self.column_sums_K[:, None])
        factor = factor * (2 if self.scorer.squared else 1)
        return (
            None if latents_grad is None else latents_grad.mul_(factor),
            None if codebook_grad is None else codebook_grad.mul_(factor),
        )


def first_duplicates(codebook_KC: Tensor) -> Tensor:
    """For each code the lowest index that holds the same values: int64 (K,).

    A matrix product may round equal columns differently, so ties are broken here, by value.
    """
    # Adding zero turns -0.0 into 0.0.
    bits_KC = (codebook_KC + 0.0).view(_BITS[codebook_KC.dtype])
    parts_Kc = bits_KC.split(_HASH_COLUMNS, dim=1)
    hashes_K = torch.zeros(len(bits_KC), dtype=torch.int64, device=bits_KC.device)
    for place, part_Kc in enumerate(parts_Kc):
        # Products of 64-bit integers wrap and stay exact.
        first = place * _HASH_COLUMNS + 1
        mix_c = torch.arange(first, first + part_Kc.shape[1], device=bits_KC.device) * _MIX[0]
        mix_c = (mix_c ^ (mix_c >> 31)) * _MIX[1]
        hashes_K += (part_Kc.long() * mix_c).sum(1)
    sorted_K, order_K = torch.sort(hashes_K, stable=True)
    starts_K = torch.ones_like(sorted_K, dtype=torch.bool)
    starts_K[1:] = sorted_K[1:] != sorted_K[:-1]
    for part_Kc in parts_Kc:
        ordered_Kc = part_Kc[order_K]
        starts_K[1:] |= (ordered_Kc[1:] != ordered_Kc[:-1]).any(1)
    positions_K = torch.arange(len(order_K), device=order_K.device)
    run_starts_K = torch.where(starts_K, positions_K, 0).cummax(0).values
    return torch.empty_like(order_K).scatter_(0, order_K, order_K[run_starts_K])


def softmax_(scores_nK: Tensor) -> Tensor:
    """softmax over codes, in place."""
    scores_nK -= scores_nK.amax(1, keepdim=True)
    scores_nK.clamp_(min=EXPONENT_FLOOR).exp_()
    return scores_nK.mul_(scores_nK.sum(1, keepdim=True).reciprocal_())


def softmax_gradient(grad_nK: Tensor, probabilities_nK: Tensor, out_nK: Tensor) -> Tensor:
    """p (g - sum_k p g) in `out_nK`, in one pass over the tile."""
    dtype = probabilities_nK.dtype
    backward = torch.ops.aten._softmax_backward_data.out
    return backward(grad_nK, probabilities_nK, 1, dtype, grad_input=out_nK)
