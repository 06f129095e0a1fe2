"""`soft_readout` as autograd and torch.compile see it, as in assign_autograd.py."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gear_kernels import soft_readout_torch
from gear_kernels.dispatch import Affinity, full_precision
from gear_kernels.needed_gradients import gradient_shapes, needed, without_none
from gear_kernels.soft_readout_state import empty_rest


def differentiable_soft_readout(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    table_KD: Tensor,
    log_sum_exp_N: Tensor | None,
    implementation: str,
    affinity: Affinity,
    temperature: float,
) -> Tensor:
    """`gear_kernels.soft_readout` by 'torch' or 'triton'; contiguous codes, compute dtype."""
    inputs = latents_NC, codebook_KC, table_KD, log_sum_exp_N
    settings = implementation, affinity.value, temperature
    if torch.compiler.is_compiling():
        return soft_readout_operator(*inputs, *settings)[0]
    return _SoftReadout.apply(*inputs, *settings)


def backend(implementation: str) -> ModuleType:
    """The module that implements the soft read-out."""
    if implementation == "torch":
        return soft_readout_torch
    from gear_kernels import soft_readout_triton

    return soft_readout_triton


def _forward(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    table_KD: Tensor,
    log_sum_exp_N: Tensor | None,
    implementation: str,
    affinity: str,
    temperature: float,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(N, D), and what the backend's backward wants of its forward."""
    inputs = latents_NC, codebook_KC, table_KD, log_sum_exp_N
    settings = {"affinity": Affinity(affinity), "temperature": temperature}
    with full_precision(latents_NC.device):
        found: tuple[Tensor, tuple[Tensor, ...]] = backend(implementation).forward(
            *inputs, **settings
        )
    return found


def _gradients(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    table_KD: Tensor,
    state: list[Tensor],
    out_grad_ND: Tensor,
    implementation: str,
    affinity: str,
    temperature: float,
    needs: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of latents, codebook and table, None where not needed."""
    inputs = latents_NC, codebook_KC, table_KD
    settings: dict[str, Any] = {"affinity": Affinity(affinity), "temperature": temperature}
    out_grad_ND = out_grad_ND.contiguous()
    latents_grad = codebook_grad = table_grad = None
    with full_precision(out_grad_ND.device):
        if needs[0] or needs[1]:
            latents_grad, codebook_grad = backend(implementation).score_gradients(
                *inputs, tuple(state), out_grad_ND, needs=tuple(needs[:2]), **settings
            )
        if needs[2]:
            table_grad = soft_readout_torch.table_gradient(*inputs, out_grad_ND, **settings)
    return latents_grad, codebook_grad, table_grad


def _backward(
    ctx: Any, out_grad_ND: Tensor, gradients: Callable[..., tuple[Tensor | None, ...]]
) -> tuple[Tensor | None, ...]:
    """The gradients of all seven arguments, by `_gradients` or its operator."""
    latents_NC, codebook_KC, table_KD, *state = ctx.saved_tensors
    inputs = latents_NC, codebook_KC, table_KD
    needs = list(ctx.needs_input_grad[:3])
    found = gradients(*inputs, state, out_grad_ND, *ctx.settings, needs)
    return *needed(found, needs), None, None, None, None


class _SoftReadout(torch.autograd.Function):
    """Saves its inputs and what the backend's forward hands on; the backward recomputes."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        out_ND, state = _forward(*inputs)
        ctx.save_for_backward(*inputs[:3], *state)
        ctx.settings = inputs[4:]
        return out_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        return _backward(ctx, out_grad_ND, _gradients)


@torch.library.custom_op("gear_kernels::soft_readout", mutates_args=())
def soft_readout_operator(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    table_KD: Tensor,
    log_sum_exp_N: Tensor | None,
    implementation: str,
    affinity: str,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(N, D), then what else Triton's forward keeps, without elements by the torch path."""
    inputs = latents_NC, codebook_KC, table_KD, log_sum_exp_N
    out_ND, state = _forward(*inputs, implementation, affinity, temperature)
    if not state:
        return out_ND, table_KD.new_empty(0), latents_NC.new_empty(0), latents_NC.new_empty(0)
    _, rest_ND, shift_N, log_mass_N = state
    return out_ND, rest_ND, shift_N, log_mass_N


@soft_readout_operator.register_fake
def _soft_readout_shapes(
    latents_NC: Tensor,
    _codebook_KC: Tensor,
    table_KD: Tensor,
    _log_sum_exp_N: Tensor | None,
    implementation: str,
    *_settings: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_tokens = latents_NC.shape[0]
    by_triton = implementation == "triton"
    num_kept = num_tokens if by_triton else 0
    rest_ND = empty_rest(table_KD, num_tokens) if by_triton else table_KD.new_empty(0)
    out_ND = table_KD.new_empty(num_tokens, table_KD.shape[1])
    return out_ND, rest_ND, latents_NC.new_empty(num_kept), latents_NC.new_empty(num_kept)


@torch.library.custom_op("gear_kernels::soft_readout_gradients", mutates_args=())
def gradients_operator(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    table_KD: Tensor,
    state: list[Tensor],
    out_grad_ND: Tensor,
    implementation: str,
    affinity: str,
    temperature: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of latents, codebook and table, without elements where not needed."""
    inputs = latents_NC, codebook_KC, table_KD
    found = _gradients(*inputs, state, out_grad_ND, implementation, affinity, temperature, needs)
    return without_none(inputs, found, needs)


gradients_operator.register_fake(gradient_shapes)


def _save_of_operator(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    # The torch path keeps nothing of its forward, the output neither.
    state = output if inputs[4] == "triton" else ()
    ctx.save_for_backward(*inputs[:3], *state)
    ctx.settings = inputs[4:]
    ctx.mark_non_differentiable(*output[1:])


def _backward_of_operator(
    ctx: Any, out_grad_ND: Tensor, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    return _backward(ctx, out_grad_ND, gradients_operator)


soft_readout_operator.register_autograd(_backward_of_operator, setup_context=_save_of_operator)
