"""`assign` as autograd and torch.compile see it: a Function in eager mode, operators in a graph.

Both run the same forward and backward. torch.compile traces neither backend flags nor launches, so
there they are opaque operators. Eager mode keeps the Function: a dispatch mode, such as the tests'
watch over memory, does not see into an operator, and an operator's call costs more.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gear_kernels import assign_torch, reference
from gear_kernels.assignment import Assignment
from gear_kernels.dispatch import Affinity, full_precision
from gear_kernels.needed_gradients import gradient_shapes, needed, without_none


def differentiable_assign(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    implementation: str,
    affinity: Affinity,
    entropy_temperature: float,
    soft_temperature: float,
) -> Assignment:
    """`gear_kernels.assign` by 'torch' or 'triton', of contiguous inputs in the compute dtype."""
    # torch.compile graphs take strings, not enum members.
    settings = implementation, affinity.value, entropy_temperature, soft_temperature
    if torch.compiler.is_compiling():
        return Assignment(*assign_operator(latents_NC, codebook_KC, *settings)[2:])
    return Assignment(*_Assign.apply(latents_NC, codebook_KC, *settings))


def _backend(implementation: str) -> ModuleType:
    if implementation == "torch":
        return assign_torch
    from gear_kernels import assign_triton

    return assign_triton


def _forward(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    implementation: str,
    affinity: str,
    entropy_temperature: float,
    soft_temperature: float,
) -> tuple[Assignment, tuple[Tensor, Tensor]]:
    """The result, and the two numbers a token (N,) by which the backward finds probabilities."""
    with full_precision(latents_NC.device):
        found = _backend(implementation).statistics(
            latents_NC, codebook_KC, Affinity(affinity), entropy_temperature, soft_temperature
        )
        result = Assignment(
            indices_N=found.indices_N,
            affinity_N=found.affinity_N,
            soft_log_sum_exp_N=found.affinity_N / soft_temperature + found.log_mass_soft_N,
            token_entropy=found.entropy_N.mean(),
            mean_probabilities_K=found.mean_probabilities_K,
            effective_codes=reference.effective_codes(found.mean_probabilities_K),
            top1_probability=found.log_mass_one_N.neg().exp().mean(),
            top1_probability_soft=found.log_mass_soft_N.neg().exp().mean(),
        )
    return result, (found.shift_N, found.log_mass_N)


def _gradients(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    shift_N: Tensor,
    log_mass_N: Tensor,
    entropy_grad: Tensor | None,
    mean_grad_K: Tensor | None,
    implementation: str,
    affinity: str,
    temperature: float,
    needs: list[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of latents and codebook, None where not needed; see assign_torch.gradients."""
    with full_precision(latents_NC.device):
        gradients: tuple[Tensor | None, Tensor | None] = _backend(implementation).gradients(
            latents_NC,
            codebook_KC,
            shift_N,
            log_mass_N,
            entropy_grad,
            mean_grad_K,
            affinity=Affinity(affinity),
            temperature=temperature,
            needs=tuple(needs),
        )
    return gradients


def _save(
    ctx: Any, inputs: tuple[Any, ...], state: tuple[Tensor, ...], constants: tuple[Tensor, ...]
) -> None:
    """Keep the inputs and two numbers a token; `constants` are the outputs without a gradient."""
    latents_NC, codebook_KC, *settings = inputs
    ctx.save_for_backward(latents_NC, codebook_KC, *state)
    ctx.settings = settings[:3]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*constants)


def _backward(
    ctx: Any,
    entropy_grad: Tensor | None,
    mean_grad_K: Tensor | None,
    gradients: Callable[..., tuple[Tensor | None, ...]],
) -> tuple[Tensor | None, ...]:
    """The gradients of all six arguments, by `_gradients` or its operator."""
    needs = list(ctx.needs_input_grad[:2])
    if (entropy_grad is None and mean_grad_K is None) or not any(needs):
        return (None,) * 6
    found = gradients(*ctx.saved_tensors, entropy_grad, mean_grad_K, *ctx.settings, needs)
    return *needed(found, needs), None, None, None, None


def _constants(result: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The members of `Assignment` but the token entropy and the mean probabilities."""
    return *result[:3], *result[5:]


class _Assign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        result, state = _forward(*inputs)
        _save(ctx, inputs, state, _constants(result))
        return tuple(result)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return _backward(ctx, grads[3], grads[4], _gradients)


@torch.library.custom_op("gear_kernels::assign", mutates_args=())
def assign_operator(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    implementation: str,
    affinity: str,
    entropy_temperature: float,
    soft_temperature: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The two numbers a token that the backward takes, then the members of `Assignment`.

    In this order because opcheck adds up the outputs, which a first one of integers would stop.
    """
    result, state = _forward(
        latents_NC, codebook_KC, implementation, affinity, entropy_temperature, soft_temperature
    )
    # Columns of one tensor: an operator's results may not share memory.
    return state[0].clone(), state[1].clone(), *result


@assign_operator.register_fake
def _assign_shapes(
    latents_NC: Tensor, codebook_KC: Tensor, *_settings: object
) -> tuple[Tensor, ...]:
    num_tokens, num_codes = latents_NC.shape[0], codebook_KC.shape[0]
    per_token = (num_tokens,)
    shapes = per_token, per_token, (), (num_codes,), (), (), ()
    return (
        latents_NC.new_empty(per_token),
        latents_NC.new_empty(per_token),
        latents_NC.new_empty(per_token, dtype=torch.int64),
        *(latents_NC.new_empty(shape) for shape in shapes),
    )


@torch.library.custom_op("gear_kernels::assign_gradients", mutates_args=())
def gradients_operator(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    shift_N: Tensor,
    log_mass_N: Tensor,
    entropy_grad: Tensor | None,
    mean_grad_K: Tensor | None,
    implementation: str,
    affinity: str,
    temperature: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of latents and codebook, without elements where not needed."""
    inputs = latents_NC, codebook_KC, shift_N, log_mass_N, entropy_grad, mean_grad_K
    found = _gradients(*inputs, implementation, affinity, temperature, needs)
    return without_none(inputs[:2], found, needs)


gradients_operator.register_fake(gradient_shapes)


def _save_of_operator(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    state = output[:2]
    _save(ctx, inputs, state, (*state, *_constants(output[2:])))


def _backward_of_operator(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    return _backward(ctx, grads[5], grads[6], gradients_operator)


assign_operator.register_autograd(_backward_of_operator, setup_context=_save_of_operator)
