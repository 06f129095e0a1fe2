"""torch.compile traces every operation whole, with the numbers of eager mode."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from compile_cases import (
    CASE,
    OPERATIONS,
    Settings,
    assert_compiled_equals_eager,
    graphs_of,
    joint,
    operator_calls,
    results,
    straight_through_alone,
    vocabulary_alone,
)
from kernel_cases import INNER, SQUARED, Problem, make_problem
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode

from gear_kernels import Affinity, assign_torch, dispatch, soft_readout_torch

# The reference's backward in a graph multiplies in another order than autograd's.
TOLERANCE = {"torch": 0.0, "reference": 1e-5}
REFERENCE = Settings("reference", SQUARED)
TOKENS, CODES, WIDTH, COLUMNS = 2048, 16384, 8, 24


@pytest.fixture(autouse=True)
def fresh_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("implementation", TOLERANCE)
@pytest.mark.parametrize("affinity", [SQUARED, INNER])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_whole_graph_equals_eager(operation, affinity: Affinity, implementation: str) -> None:
    problem = make_problem(CASE, torch.float32)
    tolerance = TOLERANCE[implementation]
    assert_compiled_equals_eager(operation, problem, Settings(implementation, affinity), tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes(dtype: torch.dtype) -> None:
    """bfloat16: low-precision latents and codes as well, which are read in float32."""
    problem = make_problem(CASE, dtype)
    for operation in OPERATIONS:
        assert_compiled_equals_eager(operation, problem, Settings("auto", SQUARED))


@pytest.mark.parametrize("needed", [0, 1, 2])
def test_a_gradient_alone(needed: int) -> None:
    problem = make_problem(CASE, torch.float32)
    for place, item in enumerate(problem[:3]):
        item.requires_grad_(place == needed)
    assert_compiled_equals_eager(joint, problem, Settings("torch", SQUARED))


def test_non_contiguous_inputs() -> None:
    problem = make_problem(CASE, torch.float32)
    turned = [item.detach().T.contiguous().T.requires_grad_() for item in problem[:3]]
    problem = Problem(*turned, *problem[3:])
    assert not problem.latents.is_contiguous()
    assert_compiled_equals_eager(joint, problem, Settings("torch", SQUARED))


@pytest.mark.parametrize("implementation", TOLERANCE)
def test_one_graph_for_every_number_of_tokens(implementation: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(joint, fullgraph=True, backend=counter)
    settings = Settings(implementation, SQUARED)
    tolerance = TOLERANCE[implementation]
    codes = make_problem(CASE, torch.float32)
    for tokens in (70, 33, 90):
        own = make_problem(CASE._replace(tokens=tokens), torch.float32)
        problem = Problem(own.latents, codes.codebook, codes.table, own.probe, codes.mean_probe)
        expected = results(joint, problem, settings)
        # Refuses a graph that fixes the number.
        torch._dynamo.mark_dynamic(problem.latents, 0)
        torch._dynamo.mark_dynamic(problem.probe, 0)
        found = results(compiled, problem, settings)
        for value, true in zip(found, expected, strict=True):
            torch.testing.assert_close(value, true, rtol=tolerance, atol=tolerance)
    assert counter.frame_count == 1


@pytest.mark.parametrize("implementation", TOLERANCE)
def test_autocast_does_not_reach_inside(implementation: str) -> None:
    problem, settings = make_problem(CASE, torch.float32), Settings(implementation, SQUARED)
    expected = results(joint, problem, settings)
    compiled = torch.compile(joint, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        found = results(compiled, problem, settings)
    tolerance = TOLERANCE[implementation]
    for value, true in zip(found, expected, strict=True):
        torch.testing.assert_close(value, true, rtol=tolerance, atol=tolerance)


def test_shortened_float32_products_do_not_reach_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked of the flag, not of numbers: a processor without bfloat16 units rounds nothing."""
    seen = {}

    def watched(module, name: str) -> None:
        original = getattr(module, name)

        def run(*arguments, **keywords):
            seen[name] = torch.backends.mkldnn.matmul.fp32_precision
            return original(*arguments, **keywords)

        monkeypatch.setattr(module, name, run)

    names = {assign_torch: ["statistics", "gradients"]}
    names[soft_readout_torch] = ["forward", "score_gradients", "table_gradient"]
    for module, functions in names.items():
        for name in functions:
            watched(module, name)
    problem = make_problem(CASE, torch.float32)
    compiled = torch.compile(joint, fullgraph=True, backend="aot_eager")
    torch.set_float32_matmul_precision("medium")
    try:
        results(compiled, problem, Settings("torch", SQUARED))
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == dict.fromkeys([name for some in names.values() for name in some], "ieee")


def test_products_of_the_reference_are_full_precision_operators() -> None:
    targets = [
        str(node.target)
        for graph in graphs_of(joint, make_problem(CASE, torch.float32), REFERENCE)
        for node in graph.graph.nodes
    ]
    # Three forward and two for each backward.
    assert targets.count("gear_kernels.product.default") == 9
    assert not [name for name in targets if name.startswith(("aten.mm", "aten.addmm", "aten.bmm"))]


def fake_problem(mode: FakeTensorMode) -> Problem:
    """Inputs of the size of a training step, without memory."""
    shapes = (TOKENS, WIDTH), (CODES, WIDTH), (CODES, COLUMNS)
    with mode:
        inputs = [torch.empty(*shape, requires_grad=True) for shape in shapes]
        return Problem(*inputs, torch.empty(TOKENS, COLUMNS), torch.empty(CODES))


def largest_value(operation, implementation: str) -> int:
    """Elements of the largest tensor in the forward or the backward graph."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        graphs = graphs_of(operation, fake_problem(mode), Settings(implementation, SQUARED))
    values = [node.meta.get("val") for graph in graphs for node in graph.graph.nodes]
    return max(value.numel() for value in values if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("operation", [joint, straight_through_alone, vocabulary_alone])
@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_a_graph_holds_no_large_tensor(
    operation, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton too is traced forward and backward without a device: operators say their shapes."""
    monkeypatch.setattr(dispatch, "interpreting", lambda: True)
    assert largest_value(operation, implementation) < TOKENS * CODES / 10
    assert largest_value(operation, "reference") >= TOKENS * CODES


@pytest.mark.parametrize(
    ("width", "chosen"), [(8, "triton"), (32, "triton"), (33, "torch"), (256, "torch")]
)
def test_a_graph_for_cuda_takes_triton_for_narrow_codes(
    width: int, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a device: the forward of `auto`, traced with CUDA tensors that hold nothing."""
    monkeypatch.setattr(dispatch, "triton_installed", lambda: True)
    seen: list[str] = []

    def keep(graph: torch.fx.GraphModule, _example_inputs: object) -> Callable[..., Any]:
        seen.extend(str(node.args) for node in graph.graph.nodes if "gear_" in str(node.target))
        return graph.forward

    with FakeTensorMode(allow_non_fake_inputs=True):
        shapes = (TOKENS, width), (CODES, width), (CODES, COLUMNS), (TOKENS, COLUMNS), (CODES,)
        problem = Problem(*(torch.empty(*shape, device="cuda") for shape in shapes))
        compiled = torch.compile(joint, fullgraph=True, backend=keep)
        outputs = compiled(problem, Settings("auto", SQUARED))
    assert len(seen) == 2
    assert all(f"'{chosen}'" in arguments for arguments in seen)
    assert {item.device.type for item in outputs} == {"cuda"}


def test_a_graph_keeps_the_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "interpreting", lambda: True)
    for implementation in ("torch", "triton"):
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            graphs = graphs_of(joint, fake_problem(mode), Settings(implementation, INNER))
        ours = [
            node
            for graph in graphs
            for node in graph.graph.nodes
            if str(node.target).startswith("gear_kernels.")
        ]
        assert sorted(str(node.target) for node in ours) == [
            "gear_kernels.assign.default",
            "gear_kernels.assign_gradients.default",
            "gear_kernels.soft_readout.default",
            "gear_kernels.soft_readout_gradients.default",
        ]
        assert all({implementation, "inner_product"} <= set(node.args[2:]) for node in ours)


@pytest.mark.parametrize("affinity", [SQUARED, INNER])
def test_operators_are_what_they_say(affinity: Affinity) -> None:
    """Schema, fake results, autograd and dynamic shapes of each, by PyTorch's own check."""
    for name, (operator, arguments) in operator_calls("torch", affinity).items():
        assert torch.library.opcheck(operator, arguments), name


@pytest.mark.parametrize(("name", "place"), [("assign", 5), ("soft_readout", 0)])
def test_second_derivatives_are_refused(name: str, place: int) -> None:
    operator, arguments = operator_calls("torch", SQUARED)[name]
    value = operator(*arguments)[place].sum()
    (grad,) = torch.autograd.grad(value, arguments[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        grad.sum().backward()
