"""`straight_through_readout` as autograd and torch.compile see it, as in assign_autograd.py."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from gear_kernels.dispatch import Affinity, full_precision
from gear_kernels.needed_gradients import gradient_shapes, needed, without_none
from gear_kernels.soft_readout_autograd import backend


def differentiable_straight_through(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    table_KD: Tensor,
    indices_N: Tensor,
    log_sum_exp_N: Tensor | None,
    implementation: str,
    affinity: Affinity,
    temperature: float,
) -> Tensor:
    """`gear_kernels.straight_through_readout` by 'torch' or 'triton'; codes in compute dtype."""
    inputs = latents_NC, codebook_KC, table_KD, indices_N, log_sum_exp_N
    settings = implementation, affinity.value, temperature
    if torch.compiler.is_compiling():
        return straight_through_operator(*inputs, *settings)
    return _StraightThrough.apply(*inputs, *settings)


def _gradients(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    table_KD: Tensor,
    indices_N: Tensor,
    log_sum_exp_N: Tensor | None,
    out_grad_ND: Tensor,
    implementation: str,
    affinity: str,
    temperature: float,
    needs: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of latents, codebook and table, None where not needed."""
    inputs = latents_NC, codebook_KC, table_KD
    settings: dict[str, Any] = {"affinity": Affinity(affinity), "temperature": temperature}
    latents_grad = codebook_grad = table_grad = None
    if needs[2]:
        # Sorts on CUDA: no atomics, unlike index_add.
        table_grad = torch.ops.aten.embedding_dense_backward(
            out_grad_ND, indices_N, len(table_KD), -1, False
        )
    if needs[0] or needs[1]:
        chosen = backend(implementation)
        with full_precision(out_grad_ND.device):
            state = chosen.softmax_state(*inputs, log_sum_exp_N, **settings)
            latents_grad, codebook_grad = chosen.score_gradients(
                *inputs, state, out_grad_ND.contiguous(), needs=tuple(needs[:2]), **settings
            )
    return latents_grad, codebook_grad, table_grad


def _save(ctx: Any, inputs: tuple[Any, ...]) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.settings = inputs[5:]


def _backward(
    ctx: Any, out_grad_ND: Tensor, gradients: Callable[..., tuple[Tensor | None, ...]]
) -> tuple[Tensor | None, ...]:
    """The gradients of all eight arguments, by `_gradients` or its operator."""
    needs = list(ctx.needs_input_grad[:3])
    found = gradients(*ctx.saved_tensors, out_grad_ND, *ctx.settings, needs)
    return *needed(found, needs), None, None, None, None, None


class _StraightThrough(torch.autograd.Function):
    """Saves its inputs only."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _save(ctx, inputs)
        return functional.embedding(inputs[3], inputs[2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        return _backward(ctx, out_grad_ND, _gradients)


@torch.library.custom_op("gear_kernels::straight_through", mutates_args=())
def straight_through_operator(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    table_KD: Tensor,
    indices_N: Tensor,
    log_sum_exp_N: Tensor | None,
    implementation: str,
    affinity: str,
    temperature: float,
) -> Tensor:
    """The table's rows (N, D)."""
    return functional.embedding(indices_N, table_KD)


@straight_through_operator.register_fake
def _straight_through_shape(latents_NC: Tensor, _codebook_KC: Tensor, *rest: Any) -> Tensor:
    return rest[0].new_empty(latents_NC.shape[0], rest[0].shape[1])


@torch.library.custom_op("gear_kernels::straight_through_gradients", mutates_args=())
def gradients_operator(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    table_KD: Tensor,
    indices_N: Tensor,
    log_sum_exp_N: Tensor | None,
    out_grad_ND: Tensor,
    implementation: str,
    affinity: str,
    temperature: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of latents, codebook and table, without elements where not needed."""
    inputs = latents_NC, codebook_KC, table_KD
    given = *inputs, indices_N, log_sum_exp_N, out_grad_ND
    found = _gradients(*given, implementation, affinity, temperature, needs)
    return without_none(inputs, found, needs)


gradients_operator.register_fake(gradient_shapes)


def _save_of_operator(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    _save(ctx, inputs)


def _backward_of_operator(ctx: Any, out_grad_ND: Tensor) -> tuple[Tensor | None, ...]:
    return _backward(ctx, out_grad_ND, gradients_operator)


straight_through_operator.register_autograd(_backward_of_operator, setup_context=_save_of_operator)
