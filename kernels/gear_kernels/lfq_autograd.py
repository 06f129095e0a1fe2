"""The factored read-out of sign codes as autograd and torch.compile see it.

As in assign_autograd.py. Shapes: see lfq.py.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gear_kernels import lfq_torch
from gear_kernels.dispatch import full_precision
from gear_kernels.needed_gradients import gradient_shapes, needed, without_none


def factored_readout(
    high_NH: Tensor, low_NL: Tensor, table_KD: Tensor, implementation: str
) -> Tensor:
    """out[n] = sum_hl high[n, h] low[n, l] table[h L + l], by 'torch' or 'triton'."""
    inputs = high_NH, low_NL, table_KD, implementation
    if torch.compiler.is_compiling():
        return factored_readout_operator(*inputs)
    return _FactoredReadout.apply(*inputs)


def _backend(implementation: str) -> ModuleType:
    if implementation == "torch":
        return lfq_torch
    from gear_kernels import lfq_triton

    return lfq_triton


def _forward(high_NH: Tensor, low_NL: Tensor, table_KD: Tensor, implementation: str) -> Tensor:
    with full_precision(high_NH.device):
        out_ND: Tensor = _backend(implementation).forward(high_NH, low_NL, table_KD)
    return out_ND


def _gradients(
    high_NH: Tensor,
    low_NL: Tensor,
    table_KD: Tensor,
    out_grad_ND: Tensor,
    implementation: str,
    needs: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of both factors and the table, None where not needed."""
    inputs = high_NH, low_NL, table_KD, out_grad_ND.contiguous()
    high_grad = low_grad = table_grad = None
    with full_precision(out_grad_ND.device):
        if needs[0] or needs[1]:
            high_grad, low_grad = _backend(implementation).factor_gradients(*inputs)
        if needs[2]:
            table_grad = lfq_torch.table_gradient(*inputs)
    return high_grad, low_grad, table_grad


def _backward(
    ctx: Any, out_grad_ND: Tensor, gradients: Callable[..., tuple[Tensor | None, ...]]
) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:3])
    found = gradients(*ctx.saved_tensors, out_grad_ND, ctx.implementation, needs)
    return *needed(found, needs), None


class _FactoredReadout(torch.autograd.Function):
    """Saves its inputs."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        ctx.save_for_backward(*inputs[:3])
        ctx.implementation = inputs[3]
        return _forward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        return _backward(ctx, out_grad_ND, _gradients)


@torch.library.custom_op("gear_kernels::factored_readout", mutates_args=())
def factored_readout_operator(
    high_NH: Tensor, low_NL: Tensor, table_KD: Tensor, implementation: str
) -> Tensor:
    """`factored_readout` in a graph."""
    return _forward(high_NH, low_NL, table_KD, implementation)


@factored_readout_operator.register_fake
def _factored_readout_shape(
    high_NH: Tensor, _low_NL: Tensor, table_KD: Tensor, _implementation: str
) -> Tensor:
    return table_KD.new_empty(high_NH.shape[0], table_KD.shape[1])


@torch.library.custom_op("gear_kernels::factored_readout_gradients", mutates_args=())
def gradients_operator(
    high_NH: Tensor,
    low_NL: Tensor,
    table_KD: Tensor,
    out_grad_ND: Tensor,
    implementation: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of both factors and the table, without elements where not needed."""
    inputs = high_NH, low_NL, table_KD
    found = _gradients(*inputs, out_grad_ND, implementation, needs)
    return without_none(inputs, found, needs)


gradients_operator.register_fake(gradient_shapes)


def _save_of_operator(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs[:3])
    ctx.implementation = inputs[3]


def _backward_of_operator(ctx: Any, out_grad_ND: Tensor) -> tuple[Tensor | None, ...]:
    return _backward(ctx, out_grad_ND, gradients_operator)


factored_readout_operator.register_autograd(_backward_of_operator, setup_context=_save_of_operator)
