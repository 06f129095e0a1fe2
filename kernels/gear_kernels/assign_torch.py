"""`assign` in blocks of rows on any device: forward statistics and gradients."""

import torch
from torch import Tensor

from gear_kernels.blocked import (
    ScoreGradient,
    Scorer,
    first_duplicates,
    row_blocks,
    softmax_gradient,
)
from gear_kernels.dispatch import Affinity
from gear_kernels.results import Statistics


def statistics(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    affinity: Affinity,
    entropy_temperature: float,
    soft_temperature: float,
) -> Statistics:
    """Per-token statistics and the mean probabilities; one (n, K) tile at a time."""
    scorer = Scorer(codebook_KC, affinity)
    num_tokens, num_codes = len(latents_NC), len(codebook_KC)
    indices_N = torch.empty(num_tokens, dtype=torch.int64, device=latents_NC.device)
    columns_5N = latents_NC.new_empty(5, num_tokens)
    best_N, entropy_N, log_mass_N, log_mass_soft_N, log_mass_one_N = columns_5N
    mean_K = latents_NC.new_zeros(num_codes)
    for rows in row_blocks(num_tokens, num_codes, latents_NC.device):
        tile_nK = scorer.tile(latents_NC[rows])
        best_N[rows], indices_N[rows] = tile_nK.max(1)
        tile_nK -= best_N[rows, None]
        log_mass_one_N[rows] = tile_nK.exp().sum(1).log_()
        log_mass_soft_N[rows] = (tile_nK / soft_temperature).exp_().sum(1).log_()
        tile_nK /= entropy_temperature
        weights_nK = tile_nK.exp()
        mass_n = weights_nK.sum(1)
        mean_K.addmv_(weights_nK.T, mass_n.reciprocal())
        log_mass_N[rows] = mass_n.log()
        entropy_N[rows] = log_mass_N[rows] - weights_nK.mul_(tile_nK).sum(1) / mass_n
    return Statistics(
        indices_N=first_duplicates(codebook_KC)[indices_N],
        shift_N=best_N,
        affinity_N=best_N + scorer.row_term(latents_NC),
        entropy_N=entropy_N,
        log_mass_N=log_mass_N,
        log_mass_soft_N=log_mass_soft_N,
        log_mass_one_N=log_mass_one_N,
        mean_probabilities_K=mean_K / num_tokens,
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
    """Gradients of latents and codebook from those of the token entropy and mean probabilities.

    With p the probabilities and q = dL/d(mean p)_k - dL/dH log p[n, k], each 1/N per token:
    ds = p (q - sum_k p q) / (N temperature).
    """
    scorer = Scorer(codebook_KC, affinity)
    gradient = ScoreGradient(latents_NC, scorer, needs)
    num_tokens, num_codes = len(latents_NC), len(codebook_KC)
    for rows in row_blocks(num_tokens, num_codes, latents_NC.device):
        log_probabilities_nK = scorer.tile(latents_NC[rows])
        log_probabilities_nK -= shift_N[rows, None]
        log_probabilities_nK /= temperature
        log_probabilities_nK -= log_mass_N[rows, None]
        probabilities_nK = log_probabilities_nK.exp()
        pull_nK = log_probabilities_nK
        pull_nK *= 0.0 if entropy_grad is None else -entropy_grad
        if mean_grad_K is not None:
            pull_nK += mean_grad_K
        gradient.add(rows, softmax_gradient(pull_nK, probabilities_nK))
    gradient_scale = 1 / (num_tokens * temperature)
    return gradient.finish(gradient_scale)
