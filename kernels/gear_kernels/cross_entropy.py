"""Next-token loss of an output head, without the (N, V) logits."""

import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gear_kernels import reference
from gear_kernels.dispatch import compute_dtype, full_precision, resolve_for
from gear_kernels.tiles_torch import product_into, row_blocks

_LIBRARY = "liger_kernel"


def vocabulary_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, implementation: str = "auto"
) -> Tensor:
    """mean_n -log softmax(hidden_n @ weight^T)[target_n].

    Args:
        hidden_ND: (N, D), any floating dtype.
        weight_VD: (V, D), the head's weight, without bias.
        targets_N: (N,) int64 in 0 .. V - 1 (not checked on CUDA: that would synchronise).
        implementation: auto, triton, torch or reference; see `resolve_cross_entropy`.

    Returns:
        A float32 scalar (float64 for such inputs). Products are in the inputs' common dtype,
        softmax and sums in float32. Gradients to hidden and weight are computed in the forward,
        block by block, and kept: one (N, D) and one (V, D). Not allocated: (N, V), except by the
        reference. Neither communicates nor synchronises. No second derivatives.

    Raises:
        ValueError: shapes that do not fit, an implementation that cannot run.
    """
    _check(hidden_ND, weight_VD, targets_N)
    chosen = resolve_cross_entropy(implementation, hidden_ND, weight_VD)
    with full_precision(hidden_ND.device):
        dtype = torch.promote_types(hidden_ND.dtype, weight_VD.dtype)
        inputs = hidden_ND.to(dtype), weight_VD.to(dtype)
        if chosen == "reference":
            return reference.vocabulary_cross_entropy(*inputs, targets_N)
        if chosen == "liger":
            return _liger(*inputs, targets_N)
        return _BlockedCrossEntropy.apply(*inputs, targets_N, torch.is_grad_enabled())


def resolve_cross_entropy(implementation: str, *tensors: Tensor) -> str:
    """As `resolve`, but there is no Triton kernel of our own: 'liger', 'torch' or 'reference'.

    Where `resolve` says Triton, liger-kernel (an optional package) runs on CUDA if it is
    installed, and the blocked torch path else.

    Raises:
        ValueError: see `resolve`.
    """
    chosen = resolve_for(implementation, *tensors)
    if chosen != "triton":
        return chosen
    available = tensors[0].is_cuda and importlib.util.find_spec(_LIBRARY) is not None
    return "liger" if available else "torch"


def _check(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> None:
    fits = hidden_ND.ndim == weight_VD.ndim == 2 and targets_N.ndim == 1
    fits = fits and hidden_ND.shape == (len(targets_N), weight_VD.shape[1])
    if not fits or 0 in (*hidden_ND.shape, *weight_VD.shape):
        shapes = [tuple(tensor.shape) for tensor in (hidden_ND, weight_VD, targets_N)]
        raise ValueError(f"expected hidden (N, D), weight (V, D) and targets (N,), got {shapes}")


def _liger(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    # apply takes positions only; the last asks for float32 sums of the weight's gradient.
    options = (None, None, -100, 0.0, 0.0, "mean", None, False, torch.float32)
    return LigerFusedLinearCrossEntropyFunction.apply(hidden_ND, weight_VD, targets_N, *options)[0]


class _BlockedCrossEntropy(torch.autograd.Function):
    """Forward computes the gradients too, so that logits are formed once; saves those."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, differentiate: bool
    ) -> Tensor:
        needs = [differentiate and need for need in ctx.needs_input_grad[:2]]
        dtype = compute_dtype(hidden_ND, weight_VD)
        num_tokens = len(hidden_ND)
        loss = torch.zeros((), dtype=dtype, device=hidden_ND.device)
        hidden_grad = torch.empty_like(hidden_ND) if needs[0] else None
        weight_grad = torch.zeros_like(weight_VD, dtype=dtype) if needs[1] else None
        for rows, (tile_nV,) in row_blocks(num_tokens, len(weight_VD), loss, 1):
            logits_nV = product_into(tile_nV, hidden_ND[rows], weight_VD.T)
            target_n1 = targets_N[rows, None]
            log_mass_n1 = torch.logsumexp(logits_nV, 1, keepdim=True)
            loss += (log_mass_n1 - logits_nV.gather(1, target_n1)).sum()
            if not any(needs):
                continue
            pull_nV = logits_nV.sub_(log_mass_n1).exp_()
            pull_nV.scatter_(1, target_n1, pull_nV.gather(1, target_n1) - 1)
            pull_nV = pull_nV.div_(num_tokens).to(hidden_ND.dtype)
            if hidden_grad is not None:
                torch.mm(pull_nV, weight_VD, out=hidden_grad[rows])
            if weight_grad is not None:
                weight_grad += pull_nV.T @ hidden_ND[rows]
        kept = [grad for grad in (hidden_grad, weight_grad) if grad is not None]
        ctx.needs = needs
        ctx.save_for_backward(*kept)
        ctx.weight_dtype = weight_VD.dtype
        return loss / num_tokens

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: Tensor) -> tuple[Tensor | None, ...]:
        kept = iter(ctx.saved_tensors)
        hidden_grad = next(kept) * loss_grad if ctx.needs[0] else None
        weight_grad = (next(kept) * loss_grad).to(ctx.weight_dtype) if ctx.needs[1] else None
        return hidden_grad, weight_grad, None, None
