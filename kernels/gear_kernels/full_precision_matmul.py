"""Matrix product that stays in full precision in its backward too, wherever that runs."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gear_kernels.dispatch import full_precision


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right of two matrices, without autocast or TF32 forward or backward."""
    if torch.compiler.is_compiling():
        return product_operator(left, right)
    return _Product.apply(left, right)


def traceable_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right within `traceable_full_precision`; in a graph the backward is precise too."""
    return product_operator(left, right) if torch.compiler.is_compiling() else left @ right


def traceable_full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """`full_precision`; in a graph, which holds no backend flags, only without autocast.

    Products of float32 tensors inside go through `traceable_product`.
    """
    if torch.compiler.is_compiling():
        return torch.autocast(device.type, enabled=False)
    return full_precision(device)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        with full_precision(left.device):
            return left @ right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        left, right = ctx.saved_tensors
        with full_precision(grad.device):
            left_grad = grad @ right.T if ctx.needs_input_grad[0] else None
            right_grad = left.T @ grad if ctx.needs_input_grad[1] else None
        return left_grad, right_grad


@torch.library.custom_op("gear_kernels::product", mutates_args=())
def product_operator(left: Tensor, right: Tensor) -> Tensor:
    """`product` in a graph."""
    with full_precision(left.device):
        return left @ right


@product_operator.register_fake
def _product_shape(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(left.shape[0], right.shape[1])


def _save_of_operator(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs)


def _backward_of_operator(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    left, right = ctx.saved_tensors
    return (
        product_operator(grad, right.T) if ctx.needs_input_grad[0] else None,
        product_operator(left.T, grad) if ctx.needs_input_grad[1] else None,
    )


product_operator.register_autograd(_backward_of_operator, setup_context=_save_of_operator)
