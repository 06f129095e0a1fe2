"""Matrix product that stays in full precision in its backward too, wherever that runs."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gear_kernels.dispatch import full_precision


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right of two matrices, without autocast or TF32 forward or backward."""
    return _Product.apply(left, right)


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
