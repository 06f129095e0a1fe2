"""Operations under torch.compile beside the same in eager mode, and calls of each operator."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from functorch.compile import make_boxed_func
from kernel_cases import Case, Problem, make_problem
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.fx import GraphModule

from gear_kernels import (
    Affinity,
    assign,
    lfq_assign,
    lfq_soft_readout,
    soft_readout,
    straight_through_readout,
    vocabulary_cross_entropy,
)
from gear_kernels.assign_autograd import assign_operator
from gear_kernels.assign_autograd import gradients_operator as assign_gradients_operator
from gear_kernels.cross_entropy_autograd import cross_entropy_operator
from gear_kernels.full_precision_matmul import product_operator
from gear_kernels.lfq_autograd import factored_readout_operator
from gear_kernels.lfq_autograd import gradients_operator as factored_gradients_operator
from gear_kernels.soft_readout_autograd import gradients_operator as readout_gradients_operator
from gear_kernels.soft_readout_autograd import soft_readout_operator
from gear_kernels.straight_through_autograd import gradients_operator as straight_gradients_operator
from gear_kernels.straight_through_autograd import straight_through_operator

Operation = Callable[..., tuple[Tensor, ...]]
CASE = Case(70, 150, 8, 17)


class Settings(NamedTuple):
    implementation: str
    affinity: Affinity


def assign_alone(problem: Problem, settings: Settings) -> tuple[Tensor, ...]:
    """A loss of both entropies, then all members of `Assignment`."""
    found = assign(*problem[:2], **settings._asdict())
    mean_loss = (found.mean_probabilities_K * problem.mean_probe).sum()
    return found.token_entropy + mean_loss, *found


def entropy_alone(problem: Problem, settings: Settings) -> tuple[Tensor, ...]:
    """A loss that leaves the mean probabilities without a gradient."""
    return (3 * assign(*problem[:2], **settings._asdict()).token_entropy,)


def readout_alone(problem: Problem, settings: Settings) -> tuple[Tensor, ...]:
    """A loss of the soft read-out, then the read-out."""
    out = soft_readout(*problem[:3], **settings._asdict())
    return (out * problem.probe).sum(), out


def joint(problem: Problem, settings: Settings) -> tuple[Tensor, ...]:
    """Both operations, the log-sum-exp handed on: a loss, then the read-out and the members."""
    found = assign(*problem[:2], **settings._asdict())
    out = soft_readout(*problem[:3], found.soft_log_sum_exp_N, **settings._asdict())
    loss = found.token_entropy + found.mean_probabilities_K.square().sum()
    return loss + (out * problem.probe).sum(), out, *found


def straight_through_alone(problem: Problem, settings: Settings) -> tuple[Tensor, ...]:
    """A loss of the straight-through read-out, then its rows."""
    indices = torch.arange(len(problem.latents), device=problem.latents.device) % CASE.codes
    out = straight_through_readout(*problem[:3], indices, **settings._asdict())
    return (out * problem.probe).sum(), out


def lfq_alone(problem: Problem, settings: Settings) -> tuple[Tensor, ...]:
    """A loss of both operations of five bits, then the read-out and the members."""
    options = {"implementation": settings.implementation}
    latents = problem.latents[:, :5]
    found = lfq_assign(latents, **options)
    out = lfq_soft_readout(latents, problem.table[:32], **options)
    loss = found.token_entropy + found.mean_probabilities_K.square().sum()
    return loss + (out * problem.probe).sum(), out, *found


def vocabulary_alone(problem: Problem, settings: Settings) -> tuple[Tensor, ...]:
    """The vocabulary loss of latents as hidden states, the codebook as weight."""
    targets = torch.arange(len(problem.latents), device=problem.latents.device) % CASE.codes
    return (3 * vocabulary_cross_entropy(*problem[:2], targets, settings.implementation),)


OPERATIONS = [
    assign_alone,
    entropy_alone,
    readout_alone,
    joint,
    straight_through_alone,
    lfq_alone,
    vocabulary_alone,
]


def results(operation: Operation, problem: Problem, settings: Settings) -> list[Tensor]:
    """Outputs of an operation, and the gradients of those inputs that require and get one."""
    outputs = operation(problem, settings)
    inputs = [item for item in problem[:3] if item.requires_grad]
    grads = torch.autograd.grad(outputs[0], inputs, allow_unused=True)
    return [*(item.detach() for item in outputs), *(item for item in grads if item is not None)]


def assert_compiled_equals_eager(
    operation: Operation, problem: Problem, settings: Settings, tolerance: float = 0.0
) -> None:
    """Traced whole, an operation has the outputs and gradients of eager mode."""
    compiled = torch.compile(operation, fullgraph=True, backend="aot_eager")
    expected = results(operation, problem, settings)
    found = results(compiled, problem, settings)
    for value, true in zip(found, expected, strict=True):
        torch.testing.assert_close(value, true, rtol=tolerance, atol=tolerance)


def graphs_of(operation: Operation, problem: Problem, settings: Settings) -> list[GraphModule]:
    """Forward and backward graph of an operation."""
    seen: list[GraphModule] = []

    def keep(graph: GraphModule, _example_inputs: object) -> Callable[..., Any]:
        seen.append(graph)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    results(torch.compile(operation, fullgraph=True, backend=backend), problem, settings)
    assert len(seen) == 2
    return seen


def operator_calls(implementation: str, affinity: Affinity) -> dict[str, tuple[Any, tuple]]:
    """Each operator with the arguments that a graph would give it, and with few needs."""
    latents, codebook, table, probe, mean_probe = make_problem(CASE, torch.float32)
    settings = implementation, affinity.value
    shift, log_mass, *members = assign_operator(latents, codebook, *settings, 0.01, 0.1)
    saved = [item.detach() for item in (latents, codebook)]
    state = *saved, shift, log_mass
    out_state = [
        item.detach() for item in soft_readout_operator(*saved, table, None, *settings, 0.1)
    ]
    readout_state = out_state if implementation == "triton" else []
    read = *saved, table.detach(), readout_state, probe, *settings, 0.1
    entropy_grad = torch.ones(())
    indices = members[0]
    straight = latents, codebook, table, indices, None
    generator = torch.Generator(latents.device).manual_seed(0)
    high, low = (torch.rand(CASE.tokens, size, generator=generator) for size in (10, 15))
    factored = high.requires_grad_(), low.requires_grad_(), table
    return {
        "straight_through": (straight_through_operator, (*straight, *settings, 1.0)),
        "straight_through_gradients": (
            straight_gradients_operator,
            (*saved, table.detach(), indices, None, probe, *settings, 1.0, [True, True, True]),
        ),
        "straight_through_gradients of the codebook": (
            straight_gradients_operator,
            (*saved, table.detach(), indices, None, probe, *settings, 1.0, [False, True, False]),
        ),
        "factored_readout": (factored_readout_operator, (*factored, implementation)),
        "factored_readout_gradients": (
            factored_gradients_operator,
            (*(item.detach() for item in factored), probe, implementation, [True, False, True]),
        ),
        "cross_entropy": (
            cross_entropy_operator,
            (latents, codebook, indices, "torch", [True, True]),
        ),
        "assign": (assign_operator, (latents, codebook, *settings, 0.01, 0.1)),
        "assign_gradients": (
            assign_gradients_operator,
            (*state, entropy_grad, mean_probe, *settings, 0.01, [True, True]),
        ),
        "assign_gradients of the codebook": (
            assign_gradients_operator,
            (*state, None, mean_probe, *settings, 0.01, [False, True]),
        ),
        "soft_readout": (soft_readout_operator, (latents, codebook, table, None, *settings, 0.1)),
        "soft_readout with a log-sum-exp": (
            soft_readout_operator,
            (latents, codebook, table, members[2], *settings, 0.1),
        ),
        "soft_readout_gradients": (readout_gradients_operator, (*read, [True, True, True])),
        "soft_readout_gradients of the table": (
            readout_gradients_operator,
            (*read, [False, False, True]),
        ),
        "product": (product_operator, (latents, codebook.detach().T.requires_grad_())),
    }
