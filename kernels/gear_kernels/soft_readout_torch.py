"""`soft_readout` in blocks of rows on any device."""

import torch
from torch import Tensor

from gear_kernels.dispatch import Affinity
from gear_kernels.tiles_torch import (
    ScoreGradient,
    Scorer,
    product_into,
    row_blocks,
    softmax_,
    softmax_gradient,
)


def forward(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    table_KD: Tensor,
    log_sum_exp_N: Tensor | None,
    *,
    affinity: Affinity,
    temperature: float,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """softmax(s / temperature) @ table, (N, D) in the table's dtype, and nothing to save.

    A block holds all codes of its rows, so the log-sum-exp is not needed.
    """
    scorer = Scorer(codebook_KC, affinity, temperature)
    out_ND = table_KD.new_empty(len(latents_NC), table_KD.shape[1])
    for rows, (tile_nK,) in row_blocks(len(latents_NC), len(codebook_KC), latents_NC, 1):
        probabilities_nK = softmax_(scorer.tile(latents_NC[rows], tile_nK))
        torch.mm(probabilities_nK.to(table_KD.dtype), table_KD, out=out_ND[rows])
    return out_ND, ()


def softmax_state(*_: object, **__: object) -> tuple[Tensor, ...]:
    """What `score_gradients` needs where no forward ran: nothing."""
    return ()


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
    """Gradients of latents and codebook: ds = p (g.t - sum_k p g.t) / temperature."""
    del state
    scorer = Scorer(codebook_KC, affinity, temperature)
    gradient = ScoreGradient(latents_NC, scorer, needs)
    for rows, tiles in row_blocks(len(latents_NC), len(codebook_KC), latents_NC, 3):
        probabilities_nK = softmax_(scorer.tile(latents_NC[rows], tiles[0]))
        pull_nK = product_into(tiles[1], out_grad_ND[rows], table_KD.T)
        gradient.add(rows, softmax_gradient(pull_nK, probabilities_nK, tiles[2]))
    return gradient.finish(1 / temperature)


def table_gradient(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    table_KD: Tensor,
    out_grad_ND: Tensor,
    *,
    affinity: Affinity,
    temperature: float,
) -> Tensor:
    """softmax(s / temperature)^T @ g, accumulated in the compute dtype: (K, D)."""
    scorer = Scorer(codebook_KC, affinity, temperature)
    table_grad_KD = torch.zeros_like(table_KD, dtype=latents_NC.dtype)
    for rows, (tile_nK,) in row_blocks(len(latents_NC), len(codebook_KC), latents_NC, 1):
        probabilities_nK = softmax_(scorer.tile(latents_NC[rows], tile_nK))
        table_grad_KD.addmm_(probabilities_nK.T, out_grad_ND[rows].to(latents_NC.dtype))
    return table_grad_KD.to(table_KD.dtype)
