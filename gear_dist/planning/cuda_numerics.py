"""What CUDA would do with dtypes, for fake tensors that pass for a CPU's."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Of what autocast computes in fp32 on CUDA and not on CPU, the functions that the networks call.
_FP32 = frozenset(
    (
        *("group_norm", "layer_norm", "softmax", "log_softmax", "cosine_similarity"),
        *("mse_loss", "l1_loss", "sum", "pow", "rsqrt", "exp", "log", "norm"),
    )
)


class CudaNumerics(TorchFunctionMode):
    """Autocast's fp32 operations, bf16 attention, and dropout masks of one byte, as on CUDA."""

    def __init__(self, bf16: bool):
        super().__init__()
        self.bf16 = bf16

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "dropout":
            return _dropout(*args, **kwargs)
        if name == "scaled_dot_product_attention" and self.bf16:
            args = tuple(_to(x, torch.bfloat16) for x in args)
        elif name in _FP32 and torch.is_autocast_enabled("cpu"):
            args = tuple(_to(x, torch.float32) for x in args)
        return func(*args, **kwargs)


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    assert not inplace
    return torch.native_dropout(x, p, True)[0] if training and p > 0 else x


def _to(value: Any, dtype: torch.dtype) -> Any:
    lower = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if lower else value
