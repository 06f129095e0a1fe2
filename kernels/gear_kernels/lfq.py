"""Lookup-free quantisation in closed form: the codes are all of {-1, +1}^C.

With s = 2 z.b the softmax at temperature T is a product of independent bits, bit i being +1 with
probability sigmoid(4 z_i / T). Splitting the bits in a low and a high half, k = h 2^low + l, gives
softmax(s / T)[k] = high[h] low[l]: two factors of 2^(C/2) entries a token in place of 2^C.

Shapes: N tokens, C bits, K = 2^C codes, H = 2^(C - C // 2), L = 2^(C // 2), D table width.
"""

import torch
from torch import Tensor
from torch.nn import functional

from gear_kernels import reference
from gear_kernels.assignment import Assignment
from gear_kernels.dispatch import (
    check_table,
    check_temperatures,
    compute_dtype,
    resolve_for,
)
from gear_kernels.full_precision_matmul import product, traceable_full_precision
from gear_kernels.lfq_autograd import factored_readout

MAX_BITS = 30
# Keeps a product of two factors, and of its gradient, above the denormal numbers, which slow a
# CPU's products tenfold. All patterns together add 1e-11 to a mass of 1 in float32.
_FACTOR_FLOOR = {torch.float32: -30.0, torch.float64: -300.0}


def lfq_assign(
    latents_NC: Tensor,
    *,
    entropy_temperature: float = 0.01,
    soft_temperature: float = 0.1,
    implementation: str = "auto",
) -> Assignment:
    """`assign` to the sign codes: index = sum_i [z_i > 0] 2^i (zero counts as -1), s = 2 z.b.

    The token entropy is a sum of binary entropies; the mean probabilities are one product of the
    two half-width factors, high^T @ low / N.

    Args:
        latents_NC: (N, C), any floating dtype, not normalised.
        entropy_temperature: temperature of the entropies.
        soft_temperature: temperature of `soft_log_sum_exp_N`.
        implementation: triton and torch are the same here; reference is dense.

    Returns:
        An `Assignment`, as `assign` does; K = 2^C. Not allocated: anything (N, K), except by the
        reference; the factors are 2 (N, 2^(C/2)). Neither communicates nor synchronises.
        torch.compile traces it whole.

    Raises:
        ValueError: an empty or too wide input, a temperature <= 0.
    """
    _check_bits(latents_NC)
    temperatures = entropy_temperature, soft_temperature
    check_temperatures(entropy_temperature=temperatures[0], soft_temperature=temperatures[1])
    chosen = resolve_for(implementation, latents_NC)
    with traceable_full_precision(latents_NC.device):
        if chosen == "reference":
            return reference.lfq_assign(latents_NC, *temperatures)
        return _closed_form(latents_NC.to(compute_dtype(latents_NC)), *temperatures)


def lfq_soft_readout(
    latents_NC: Tensor,
    table_KD: Tensor,
    *,
    temperature: float = 0.1,
    implementation: str = "auto",
) -> Tensor:
    """`soft_readout` over the sign codes: softmax(2 z.b / temperature) @ table.

    Args:
        latents_NC: (N, C), any floating dtype.
        table_KD: (2^C, D).
        temperature: tau.
        implementation: auto, triton, torch or reference; see `resolve`.

    Returns:
        (N, D) in the table's dtype, sums in float32. Gradients to latents and table. No search, no
        exponential per (token, code), nothing (N, K) or (N, L, D), except by the reference.
        Neither communicates nor synchronises. No second derivatives. torch.compile traces it whole.

    Raises:
        ValueError: shapes that do not fit, a temperature <= 0, an implementation that cannot run.
    """
    _check_bits(latents_NC)
    check_table(2 ** latents_NC.shape[1], table_KD)
    check_temperatures(temperature=temperature)
    chosen = resolve_for(implementation, latents_NC, table_KD)
    with traceable_full_precision(latents_NC.device):
        if chosen == "reference":
            return reference.lfq_soft_readout(latents_NC, table_KD, temperature)
        logits_NC = (4 / temperature) * latents_NC.to(compute_dtype(latents_NC))
        high_NH, low_NL = factors(logits_NC)
        return factored_readout(high_NH, low_NL, table_KD, chosen)


def factors(logits_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities of the high half's and the low half's patterns: (N, H), (N, L).

    Sums log-probabilities of bits, so the likeliest pattern's is near 0 and loses no digits.
    """
    middle = logits_NC.shape[1] // 2
    return _pattern_probabilities(logits_NC[:, middle:]), _pattern_probabilities(
        logits_NC[:, :middle]
    )


def _pattern_probabilities(logits_Nc: Tensor) -> Tensor:
    on_cP = (reference.sign_codes(logits_Nc.shape[1], logits_Nc).T > 0).to(logits_Nc)
    log_on_NP = product(functional.logsigmoid(logits_Nc), on_cP)
    log_off_NP = product(functional.logsigmoid(-logits_Nc), 1 - on_cP)
    return (log_on_NP + log_off_NP).clamp(min=_FACTOR_FLOOR[logits_Nc.dtype]).exp()


def _closed_form(
    latents_NC: Tensor, entropy_temperature: float, soft_temperature: float
) -> Assignment:
    high_NH, low_NL = factors((4 / entropy_temperature) * latents_NC)
    mean_K = product(high_NH.T, low_NL).flatten() / len(latents_NC)
    # H is even in the logit; this form has no cancellation for large ones.
    sizes_NC = (4 / entropy_temperature) * latents_NC.abs()
    entropies_NC = functional.softplus(-sizes_NC) + sizes_NC * torch.sigmoid(-sizes_NC)
    lengths_NC = latents_NC.detach().abs()
    affinity_N = 2 * lengths_NC.sum(1)
    log_mass_soft_N = functional.softplus(-(4 / soft_temperature) * lengths_NC).sum(1)
    log_mass_one_N = functional.softplus(-4 * lengths_NC).sum(1)
    return Assignment(
        indices_N=reference.sign_indices(latents_NC),
        affinity_N=affinity_N,
        soft_log_sum_exp_N=affinity_N / soft_temperature + log_mass_soft_N,
        token_entropy=entropies_NC.sum(1).mean(),
        mean_probabilities_K=mean_K,
        effective_codes=reference.effective_codes(mean_K),
        top1_probability=log_mass_one_N.neg().exp().mean(),
        top1_probability_soft=log_mass_soft_N.neg().exp().mean(),
    )


def _check_bits(latents_NC: Tensor) -> None:
    shape = tuple(latents_NC.shape)
    if latents_NC.ndim != 2 or 0 in shape or shape[1] > MAX_BITS:
        raise ValueError(f"expected latents (N, C) with 1 to {MAX_BITS} bits C, got {shape}")
