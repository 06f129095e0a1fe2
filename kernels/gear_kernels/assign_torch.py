"""`assign` in blocks of rows on any device: forward statistics and gradients."""

import torch
from torch import Tensor

from gear_kernels.assignment import Statistics
from gear_kernels.dispatch import Affinity
from gear_kernels.tiles_torch import (
    EXPONENT_FLOOR,
    ScoreGradient,
    Scorer,
    first_duplicates,
    row_blocks,
    softmax_gradient,
)


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
    for rows, (tile_nK, spare_nK) in row_blocks(num_tokens, num_codes, latents_NC, 2):
        scorer.tile(latents_NC[rows], tile_nK)
        best_N[rows], indices_N[rows] = tile_nK.max(1)
        tile_nK -= best_N[rows, None]
        log_mass_one_N[rows] = _log_mass(tile_nK, 1.0, spare_nK)
        log_mass_soft_N[rows] = _log_mass(tile_nK, soft_temperature, spare_nK)
        tile_nK.mul_(1 / entropy_temperature).clamp_(min=EXPONENT_FLOOR)
        weights_nK = torch.exp(tile_nK, out=spare_nK)
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


def _log_mass(scores_nK: Tensor, temperature: float, spare_nK: Tensor) -> Tensor:
    exponents_nK = torch.mul(scores_nK, 1 / temperature, out=spare_nK)
    return exponents_nK.clamp_(min=EXPONENT_FLOOR).exp_().sum(1).log_()


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
    ds = p (q - sum_k p q) / (N temperature). A block holds all codes, so shift and mass are found
    anew: the forward's may come from another order of additions.
    """
    del shift_N, log_mass_N
    scorer = Scorer(codebook_KC, affinity)
    gradient = ScoreGradient(latents_NC, scorer, needs)
    num_tokens, num_codes = len(latents_NC), len(codebook_KC)
    for rows, tiles in row_blocks(num_tokens, num_codes, latents_NC, 3):
        exponents_nK = scorer.tile(latents_NC[rows], tiles[0])
        exponents_nK -= exponents_nK.amax(1, keepdim=True)
        exponents_nK.mul_(1 / temperature).clamp_(min=EXPONENT_FLOOR)
        probabilities_nK = torch.exp(exponents_nK, out=tiles[1])
        probabilities_nK *= probabilities_nK.sum(1, keepdim=True).reciprocal_()
        # log p up to a row's constant, which the softmax's gradient takes out.
        pull_nK = exponents_nK.mul_(0.0 if entropy_grad is None else -entropy_grad)
        if mean_grad_K is not None:
            pull_nK += mean_grad_K
        gradient.add(rows, softmax_gradient(pull_nK, probabilities_nK, tiles[2]))
    gradient_scale = 1 / (num_tokens * temperature)
    return gradient.finish(gradient_scale)
