"""Straight-through read-out: the hard row forward, the soft assignment's gradient backward."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from gear_kernels import reference
from gear_kernels.dispatch import (
    Affinity,
    check_codes,
    check_table,
    check_temperatures,
    compute_dtype,
    full_precision,
    resolve_for,
)
from gear_kernels.soft_readout_autograd import backend


def straight_through_readout(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    table_KD: Tensor,
    indices_N: Tensor,
    log_sum_exp_N: Tensor | None = None,
    *,
    temperature: float = 1.0,
    affinity: Affinity = Affinity.INNER_PRODUCT,
    implementation: str = "auto",
) -> Tensor:
    """table[indices] with the gradient of (hard + softmax(s / temperature) - sg softmax) @ table.

    Backward, with g the output's gradient and p = softmax(s / temperature): table[indices] gets g,
    and s gets p (g.table - sum_k p g.table) / temperature. With the codebook as the table this is
    IBQ's index back-propagation.

    Args:
        latents_NC: (N, C), any floating dtype.
        codebook_KC: (K, C).
        table_KD: (K, D), one row a code; may be the codebook itself.
        indices_N: (N,) int64, as `assign` returned them.
        log_sum_exp_N: log sum_k exp(s / temperature) of the same inputs, if at hand: saves Triton
            a pass over the codes.
        temperature: of the softmax.
        affinity: the score.
        implementation: auto, triton, torch or reference; see `resolve`.

    Returns:
        (N, D) in the table's dtype, exactly the table's rows. The table's gradient adds rows in a
        fixed order. The backward recomputes; nothing (N, K) is allocated, except by the reference.
        Neither communicates nor synchronises. No second derivatives.

    Raises:
        ValueError: shapes that do not fit, a temperature <= 0, an implementation that cannot run.
    """
    check_codes(latents_NC, codebook_KC)
    check_table(len(codebook_KC), table_KD)
    check_temperatures(temperature=temperature)
    if indices_N.shape != latents_NC.shape[:1]:
        raise ValueError(f"expected {len(latents_NC)} indices, got {tuple(indices_N.shape)}")
    chosen = resolve_for(
        implementation, latents_NC, codebook_KC, table_KD, code_width=codebook_KC.shape[1]
    )
    with full_precision(latents_NC.device):
        if chosen == "reference":
            return reference.straight_through_readout(
                latents_NC, codebook_KC, table_KD, indices_N, temperature, affinity
            )
        dtype = compute_dtype(latents_NC, codebook_KC)
        inputs = latents_NC.to(dtype).contiguous(), codebook_KC.to(dtype).contiguous()
        return _StraightThrough.apply(
            *inputs, table_KD, indices_N, log_sum_exp_N, backend(chosen), temperature, affinity
        )


class _StraightThrough(torch.autograd.Function):
    """Saves its inputs only."""

    @staticmethod
    def forward(
        ctx: Any,
        latents_NC: Tensor,
        codebook_KC: Tensor,
        table_KD: Tensor,
        indices_N: Tensor,
        log_sum_exp_N: Tensor | None,
        backend: ModuleType,
        temperature: float,
        affinity: Affinity,
    ) -> Tensor:
        ctx.save_for_backward(latents_NC, codebook_KC, table_KD, indices_N, log_sum_exp_N)
        ctx.settings = {"affinity": affinity, "temperature": temperature}
        ctx.backend = backend
        return functional.embedding(indices_N, table_KD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        latents_NC, codebook_KC, table_KD, indices_N, log_sum_exp_N = ctx.saved_tensors
        needs = ctx.needs_input_grad
        latents_grad = codebook_grad = table_grad = None
        if needs[2]:
            # Sorts on CUDA: no atomics, unlike index_add.
            table_grad = torch.ops.aten.embedding_dense_backward(
                out_grad_ND, indices_N, len(table_KD), -1, False
            )
        if needs[0] or needs[1]:
            inputs = latents_NC, codebook_KC, table_KD
            with full_precision(out_grad_ND.device):
                state = ctx.backend.softmax_state(*inputs, log_sum_exp_N, **ctx.settings)
                latents_grad, codebook_grad = ctx.backend.score_gradients(
                    *inputs, state, out_grad_ND.contiguous(), needs=needs[:2], **ctx.settings
                )
        return latents_grad, codebook_grad, table_grad, *(None,) * 5
