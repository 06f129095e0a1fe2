"""Next-token loss of an output head, without the (N, V) logits."""

import importlib.util

import torch
from torch import Tensor

from gear_kernels import reference
from gear_kernels.cross_entropy_autograd import differentiable_cross_entropy
from gear_kernels.dispatch import resolve_for
from gear_kernels.full_precision_matmul import traceable_full_precision

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
        torch.compile traces it whole.

    Raises:
        ValueError: shapes that do not fit, an implementation that cannot run.
    """
    _check(hidden_ND, weight_VD, targets_N)
    chosen = resolve_cross_entropy(implementation, hidden_ND, weight_VD)
    dtype = torch.promote_types(hidden_ND.dtype, weight_VD.dtype)
    inputs = hidden_ND.to(dtype), weight_VD.to(dtype), targets_N
    if chosen == "reference":
        with traceable_full_precision(hidden_ND.device):
            return reference.vocabulary_cross_entropy(*inputs)
    return differentiable_cross_entropy(*inputs, chosen)


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
    return "liger" if tensors[0].is_cuda and _library_installed() else "torch"


# Does not change while a process runs; see dispatch.triton_installed.
@torch.compiler.assume_constant_result
def _library_installed() -> bool:
    return importlib.util.find_spec(_LIBRARY) is not None


def _check(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> None:
    fits = hidden_ND.ndim == weight_VD.ndim == 2 and targets_N.ndim == 1
    fits = fits and hidden_ND.shape == (len(targets_N), weight_VD.shape[1])
    if not fits or 0 in (*hidden_ND.shape, *weight_VD.shape):
        shapes = [tuple(tensor.shape) for tensor in (hidden_ND, weight_VD, targets_N)]
        raise ValueError(f"expected hidden (N, D), weight (V, D) and targets (N,), got {shapes}")
