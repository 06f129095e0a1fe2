"""`vocabulary_cross_entropy` as autograd and torch.compile see it.

The forward computes the gradients too, so that logits are formed once, and keeps those. In a graph
it is an opaque operator that hands them on: torch.compile traces neither the blocks nor the
library. Shapes: N tokens, D width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gear_kernels.dispatch import compute_dtype, full_precision
from gear_kernels.tiles_torch import product_into, row_blocks


def differentiable_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, implementation: str
) -> Tensor:
    """`gear_kernels.vocabulary_cross_entropy` by 'torch' or 'liger', of inputs of one dtype."""
    inputs = hidden_ND, weight_VD, targets_N
    if torch.compiler.is_compiling():
        needs = [torch.is_grad_enabled() and item.requires_grad for item in inputs[:2]]
        return cross_entropy_operator(*inputs, implementation, needs)[0]
    if implementation == "liger":
        with full_precision(hidden_ND.device):
            return liger(*inputs)
    return _BlockedCrossEntropy.apply(*inputs, torch.is_grad_enabled())


def liger(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """The loss by liger-kernel, differentiable."""
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    if weight_VD.requires_grad and not hidden_ND.requires_grad:
        # It gives the weight a gradient only where the hidden states take one (liger-kernel 0.8.5).
        hidden_ND = hidden_ND.detach().requires_grad_()
    # apply takes positions only; the last asks for float32 sums of the weight's gradient.
    options = (None, None, -100, 0.0, 0.0, "mean", None, False, torch.float32)
    return LigerFusedLinearCrossEntropyFunction.apply(hidden_ND, weight_VD, targets_N, *options)[0]


def _blocked(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Loss, gradients of hidden and weight (in the compute dtype); None where not needed."""
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
    return loss / num_tokens, hidden_grad, weight_grad


class _BlockedCrossEntropy(torch.autograd.Function):
    """Saves the two gradients."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, differentiate: bool
    ) -> Tensor:
        needs = [differentiate and need for need in ctx.needs_input_grad[:2]]
        with full_precision(hidden_ND.device):
            loss, *grads = _blocked(hidden_ND, weight_VD, targets_N, needs)
        ctx.needs = needs
        ctx.save_for_backward(*(grad for grad in grads if grad is not None))
        ctx.weight_dtype = weight_VD.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: Tensor) -> tuple[Tensor | None, ...]:
        kept = iter(ctx.saved_tensors)
        hidden_grad = next(kept) * loss_grad if ctx.needs[0] else None
        weight_grad = (next(kept) * loss_grad).to(ctx.weight_dtype) if ctx.needs[1] else None
        return hidden_grad, weight_grad, None, None


def _liger_with_gradients(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    with torch.enable_grad():
        inputs = [
            item.detach().requires_grad_(need)
            for item, need in zip((hidden_ND, weight_VD), needs, strict=True)
        ]
        loss = liger(inputs[0], inputs[1], targets_N)
        needed = [item for item in inputs if item.requires_grad]
        found = iter(torch.autograd.grad(loss, needed) if needed else ())
    grads = [next(found) if need else None for need in needs]
    return loss.detach(), grads[0], grads[1]


@torch.library.custom_op("gear_kernels::cross_entropy", mutates_args=())
def cross_entropy_operator(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, implementation: str, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, then the gradients of hidden and weight, without elements where not needed."""
    inputs = hidden_ND, weight_VD, targets_N, needs
    with full_precision(hidden_ND.device):
        found = _liger_with_gradients(*inputs) if implementation == "liger" else _blocked(*inputs)
    dtype = compute_dtype(hidden_ND, weight_VD)
    hidden_grad = hidden_ND.new_empty(0) if found[1] is None else found[1]
    weight_grad = hidden_ND.new_empty(0, dtype=dtype) if found[2] is None else found[2].to(dtype)
    return found[0].to(dtype), hidden_grad, weight_grad


@cross_entropy_operator.register_fake
def _cross_entropy_shapes(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    _targets_N: Tensor,
    _implementation: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(hidden_ND, weight_VD)
    return (
        hidden_ND.new_empty((), dtype=dtype),
        torch.empty_like(hidden_ND) if needs[0] else hidden_ND.new_empty(0),
        torch.empty_like(weight_VD, dtype=dtype)
        if needs[1]
        else hidden_ND.new_empty(0, dtype=dtype),
    )


def _save_of_operator(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.needs, ctx.weight_dtype = inputs[4], inputs[1].dtype
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward_of_operator(
    ctx: Any, loss_grad: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    if loss_grad is None:
        return (None,) * 5
    hidden_grad, weight_grad = ctx.saved_tensors
    return (
        hidden_grad * loss_grad if ctx.needs[0] else None,
        (weight_grad * loss_grad).to(ctx.weight_dtype) if ctx.needs[1] else None,
        None,
        None,
        None,
    )


cross_entropy_operator.register_autograd(_backward_of_operator, setup_context=_save_of_operator)
