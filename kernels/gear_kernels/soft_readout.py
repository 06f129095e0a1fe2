"""Soft read-out: the expected row of a table under a latent's soft assignment to codes."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gear_kernels import reference, soft_readout_torch
from gear_kernels.dispatch import (
    Affinity,
    check_codes,
    check_table,
    check_temperatures,
    compute_dtype,
    full_precision,
    resolve_for,
)


def soft_readout(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    table_KD: Tensor,
    log_sum_exp_N: Tensor | None = None,
    *,
    temperature: float = 0.1,
    affinity: Affinity = Affinity.SQUARED_DISTANCE,
    implementation: str = "auto",
) -> Tensor:
    """e_n = sum_k softmax(s[n, :] / temperature)_k table_k, with s as in `Affinity`.

    Args:
        latents_NC: (N, C), any floating dtype.
        codebook_KC: (K, C).
        table_KD: (K, D), one row a code; need not be the codebook.
        log_sum_exp_N: `Assignment.soft_log_sum_exp_N` of the same latents, codebook, affinity and
            temperature: saves Triton a pass over the codes. It carries no gradient; the gradient
            is that of the whole softmax nevertheless. The torch path does not need it.
        temperature: tau.
        affinity: the score.
        implementation: auto, triton, torch or reference; see `resolve`.

    Returns:
        (N, D) in the table's dtype; affinities and softmax are float32 (float64 for such inputs),
        sums accumulate in float32. Gradients to latents, codebook and table (the table's by the
        torch path, whatever the implementation). The backward recomputes; nothing (N, K) is
        allocated, except by the reference. Neither communicates nor synchronises. No second
        derivatives.

    Raises:
        ValueError: shapes that do not fit, a temperature <= 0, an implementation that cannot run.
    """
    check_codes(latents_NC, codebook_KC)
    check_table(len(codebook_KC), table_KD)
    check_temperatures(temperature=temperature)
    chosen = resolve_for(
        implementation, latents_NC, codebook_KC, table_KD, code_width=codebook_KC.shape[1]
    )
    with full_precision(latents_NC.device):
        if chosen == "reference":
            return reference.soft_readout(latents_NC, codebook_KC, table_KD, temperature, affinity)
        dtype = compute_dtype(latents_NC, codebook_KC)
        inputs = latents_NC.to(dtype).contiguous(), codebook_KC.to(dtype).contiguous()
        return _SoftReadout.apply(
            *inputs, table_KD, log_sum_exp_N, backend(chosen), temperature, affinity
        )


def backend(chosen: str) -> ModuleType:
    """The module that implements the soft read-out."""
    if chosen == "torch":
        return soft_readout_torch
    from gear_kernels import soft_readout_triton

    return soft_readout_triton


class _SoftReadout(torch.autograd.Function):
    """Saves its inputs and what the backend's forward hands on; the backward recomputes."""

    @staticmethod
    def forward(
        ctx: Any,
        latents_NC: Tensor,
        codebook_KC: Tensor,
        table_KD: Tensor,
        log_sum_exp_N: Tensor | None,
        backend: ModuleType,
        temperature: float,
        affinity: Affinity,
    ) -> Tensor:
        ctx.settings = {"affinity": affinity, "temperature": temperature}
        ctx.backend = backend
        out_ND, state = backend.forward(
            latents_NC, codebook_KC, table_KD, log_sum_exp_N, **ctx.settings
        )
        ctx.save_for_backward(latents_NC, codebook_KC, table_KD, *state)
        return out_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        latents_NC, codebook_KC, table_KD, *state = ctx.saved_tensors
        inputs = latents_NC, codebook_KC, table_KD
        needs = ctx.needs_input_grad
        out_grad_ND = out_grad_ND.contiguous()
        latents_grad = codebook_grad = table_grad = None
        with full_precision(out_grad_ND.device):
            if needs[0] or needs[1]:
                latents_grad, codebook_grad = ctx.backend.score_gradients(
                    *inputs, tuple(state), out_grad_ND, needs=needs[:2], **ctx.settings
                )
            if needs[2]:
                table_grad = soft_readout_torch.table_gradient(*inputs, out_grad_ND, **ctx.settings)
        return latents_grad, codebook_grad, table_grad, None, None, None, None
