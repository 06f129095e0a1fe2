"""The specification: plain, materialised (N, K) evaluation, differentiable by autograd.

Any floating dtype is taken; float64 inputs are evaluated in float64 and are the truth that the
other implementations are measured against.

Shapes: N tokens, K codes, C code width, D table width, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional

from gear_kernels.assignment import Assignment
from gear_kernels.dispatch import Affinity, compute_dtype
from gear_kernels.full_precision_matmul import traceable_product
from gear_kernels.tiles_torch import first_duplicates


def affinities(latents_NC: Tensor, codebook_KC: Tensor, affinity: Affinity) -> Tensor:
    """s (N, K), see `Affinity`; a row's common term |z|^2 is included."""
    products_NK = traceable_product(latents_NC, codebook_KC.T)
    if affinity == Affinity.INNER_PRODUCT:
        return products_NK
    latent_norms_N1 = latents_NC.square().sum(1, keepdim=True)
    return -(latent_norms_N1 + codebook_KC.square().sum(1) - 2 * products_NK)


def assignment(
    affinities_NK: Tensor, *, entropy_temperature: float, soft_temperature: float
) -> Assignment:
    """All members of `Assignment` from materialised affinities (N, K)."""
    log_probabilities_NK = torch.log_softmax(affinities_NK / entropy_temperature, 1)
    probabilities_NK = log_probabilities_NK.exp()
    mean_K = probabilities_NK.mean(0)
    detached_NK = affinities_NK.detach()
    best_N = detached_NK.amax(1)
    soft_log_sum_exp_N = torch.logsumexp(detached_NK / soft_temperature, 1)
    return Assignment(
        indices_N=detached_NK.argmax(1),
        affinity_N=best_N,
        soft_log_sum_exp_N=soft_log_sum_exp_N,
        token_entropy=-(probabilities_NK * log_probabilities_NK).sum(1).mean(),
        mean_probabilities_K=mean_K,
        effective_codes=effective_codes(mean_K),
        top1_probability=(best_N - torch.logsumexp(detached_NK, 1)).exp().mean(),
        top1_probability_soft=(best_N / soft_temperature - soft_log_sum_exp_N).exp().mean(),
    )


def effective_codes(mean_probabilities_K: Tensor) -> Tensor:
    """exp(-sum p log p), the number of equally used codes with the same entropy; no gradient."""
    return torch.special.entr(mean_probabilities_K.detach()).sum().exp()


def assign(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    affinity: Affinity,
    entropy_temperature: float,
    soft_temperature: float,
) -> Assignment:
    """`gear_kernels.assign` with (N, K) matrices."""
    dtype = compute_dtype(latents_NC, codebook_KC)
    latents_NC, codebook_KC = latents_NC.to(dtype), codebook_KC.to(dtype)
    found = assignment(
        affinities(latents_NC, codebook_KC, affinity),
        entropy_temperature=entropy_temperature,
        soft_temperature=soft_temperature,
    )
    first_K = first_duplicates(codebook_KC.detach())
    return found._replace(indices_N=first_K[found.indices_N])


def soft_readout(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    table_KD: Tensor,
    temperature: float,
    affinity: Affinity,
) -> Tensor:
    """`gear_kernels.soft_readout` with (N, K) matrices; probabilities in the table's dtype."""
    dtype = compute_dtype(latents_NC, codebook_KC)
    scores_NK = affinities(latents_NC.to(dtype), codebook_KC.to(dtype), affinity)
    probabilities_NK = torch.softmax(scores_NK / temperature, 1).to(table_KD.dtype)
    return traceable_product(probabilities_NK, table_KD)


def straight_through_readout(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    table_KD: Tensor,
    indices_N: Tensor,
    temperature: float,
    affinity: Affinity,
) -> Tensor:
    """`gear_kernels.straight_through_readout` with (N, K) matrices: onehot_st @ table."""
    dtype = compute_dtype(latents_NC, codebook_KC)
    scores_NK = affinities(latents_NC.to(dtype), codebook_KC.to(dtype), affinity)
    soft_NK = torch.softmax(scores_NK / temperature, 1)
    hard_NK = functional.one_hot(indices_N, len(codebook_KC)).to(dtype)
    # Grouped so that the difference is exactly zero and the value is the table's row.
    one_hot_NK = hard_NK + (soft_NK - soft_NK.detach())
    return traceable_product(one_hot_NK.to(table_KD.dtype), table_KD)


def sign_codes(width: int, like: Tensor) -> Tensor:
    """All 2^width codes of {-1, +1}: (2^width, width); bit i of the index is entry i's sign."""
    codes_K1 = torch.arange(2**width, device=like.device)[:, None]
    bits_KC = (codes_K1 >> torch.arange(width, device=like.device)) & 1
    return (2 * bits_KC - 1).to(like.dtype)


def lfq_affinities(latents_NC: Tensor) -> Tensor:
    """s = 2 z.b over all sign codes: (N, 2^C)."""
    codes_KC = sign_codes(latents_NC.shape[1], latents_NC)
    return traceable_product(2 * latents_NC, codes_KC.T)


def lfq_assign(
    latents_NC: Tensor, entropy_temperature: float, soft_temperature: float
) -> Assignment:
    """`gear_kernels.lfq_assign` with (N, K) matrices; the index is the bits of z > 0."""
    latents_NC = latents_NC.to(compute_dtype(latents_NC))
    found = assignment(
        lfq_affinities(latents_NC),
        entropy_temperature=entropy_temperature,
        soft_temperature=soft_temperature,
    )
    return found._replace(indices_N=sign_indices(latents_NC))


def sign_indices(latents_NC: Tensor) -> Tensor:
    """sum_i [z_i > 0] 2^i: int64 (N,)."""
    weights_C = 2 ** torch.arange(latents_NC.shape[1], device=latents_NC.device)
    return ((latents_NC > 0) * weights_C).sum(1)


def lfq_soft_readout(latents_NC: Tensor, table_KD: Tensor, temperature: float) -> Tensor:
    """`gear_kernels.lfq_soft_readout` with (N, K) matrices."""
    scores_NK = lfq_affinities(latents_NC.to(compute_dtype(latents_NC)))
    probabilities_NK = torch.softmax(scores_NK / temperature, 1).to(table_KD.dtype)
    return traceable_product(probabilities_NK, table_KD)


def vocabulary_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """`gear_kernels.vocabulary_cross_entropy` with (N, V) logits."""
    logits_NV = traceable_product(hidden_ND, weight_VD.T).to(compute_dtype(hidden_ND, weight_VD))
    return functional.cross_entropy(logits_NV, targets_N)
