"""Nearest code, assignment entropy and diagnostics of N latents against K codes."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gear_kernels import assign_torch, reference
from gear_kernels.assignment import Assignment
from gear_kernels.dispatch import (
    Affinity,
    check_codes,
    check_temperatures,
    compute_dtype,
    full_precision,
    resolve_for,
)


def assign(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    *,
    affinity: Affinity = Affinity.SQUARED_DISTANCE,
    entropy_temperature: float = 0.01,
    soft_temperature: float = 0.1,
    implementation: str = "auto",
) -> Assignment:
    """Assign latents to codes by the affinity s[n, k] (see `Affinity`).

    indices = argmax_k s; with p = softmax(s / entropy_temperature): token_entropy = mean_n H(p_n),
    mean_probabilities = mean_n p_n. Gradients reach latents and codebook through these two.

    Args:
        latents_NC: (N, C), any floating dtype; normalised by the caller where the method says so.
        codebook_KC: (K, C).
        affinity: the score.
        entropy_temperature: temperature of the entropies.
        soft_temperature: temperature of `soft_log_sum_exp_N`.
        implementation: auto, triton, torch or reference; see `resolve`.

    Returns:
        An `Assignment` in float32 (float64 for float64 inputs), on the inputs' device. Ties go to
        the lowest index. Autocast and TF32 are off inside. Not allocated: anything (N, K), except
        by the reference. Neither communicates nor synchronises. No second derivatives.

    Raises:
        ValueError: shapes that do not fit, a temperature <= 0, an implementation that cannot run.
    """
    check_codes(latents_NC, codebook_KC)
    temperatures = {
        "entropy_temperature": entropy_temperature,
        "soft_temperature": soft_temperature,
    }
    check_temperatures(**temperatures)
    chosen = resolve_for(implementation, latents_NC, codebook_KC, code_width=codebook_KC.shape[1])
    with full_precision(latents_NC.device):
        if chosen == "reference":
            return reference.assign(latents_NC, codebook_KC, affinity=affinity, **temperatures)
        dtype = compute_dtype(latents_NC, codebook_KC)
        inputs = latents_NC.to(dtype).contiguous(), codebook_KC.to(dtype).contiguous()
        outputs = _Assign.apply(
            *inputs, _backend(chosen), affinity, entropy_temperature, soft_temperature
        )
    return Assignment(*outputs)


def _backend(chosen: str) -> ModuleType:
    if chosen == "torch":
        return assign_torch
    from gear_kernels import assign_triton

    return assign_triton


class _Assign(torch.autograd.Function):
    """Saves the inputs and two numbers a token; the backward recomputes the probabilities."""

    @staticmethod
    def forward(
        ctx: Any,
        latents_NC: Tensor,
        codebook_KC: Tensor,
        backend: ModuleType,
        affinity: Affinity,
        entropy_temperature: float,
        soft_temperature: float,
    ) -> tuple[Tensor, ...]:
        found = backend.statistics(
            latents_NC, codebook_KC, affinity, entropy_temperature, soft_temperature
        )
        ctx.save_for_backward(latents_NC, codebook_KC, found.shift_N, found.log_mass_N)
        ctx.backend, ctx.affinity, ctx.temperature = backend, affinity, entropy_temperature
        ctx.set_materialize_grads(False)
        result = Assignment(
            indices_N=found.indices_N,
            affinity_N=found.affinity_N,
            soft_log_sum_exp_N=found.affinity_N / soft_temperature + found.log_mass_soft_N,
            token_entropy=found.entropy_N.mean(),
            mean_probabilities_K=found.mean_probabilities_K,
            effective_codes=reference.effective_codes(found.mean_probabilities_K),
            top1_probability=found.log_mass_one_N.neg().exp().mean(),
            top1_probability_soft=found.log_mass_soft_N.neg().exp().mean(),
        )
        ctx.mark_non_differentiable(*result[:3], *result[5:])
        return tuple(result)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        entropy_grad, mean_grad_K = grads[3:5]
        needs = tuple(ctx.needs_input_grad[:2])
        if (entropy_grad is None and mean_grad_K is None) or not any(needs):
            return (None,) * 6
        with full_precision(ctx.saved_tensors[0].device):
            latents_grad, codebook_grad = ctx.backend.gradients(
                *ctx.saved_tensors,
                entropy_grad,
                mean_grad_K,
                affinity=ctx.affinity,
                temperature=ctx.temperature,
                needs=needs,
            )
        return latents_grad, codebook_grad, None, None, None, None
