"""The Triton kernels against the float64 reference. Not collected by name:

test_triton.py runs this file in a process of its own, because Triton decides at import whether it
interprets: on the CPU under TRITON_INTERPRET=1, and on a CUDA device where there is one.
"""

from collections.abc import Iterator

import interpreted_bf16
import pytest
import torch
import triton
import triton.language as tl
from compile_cases import (
    CASE,
    OPERATIONS,
    Settings,
    assert_compiled_equals_eager,
    joint,
    operator_calls,
    readout_alone,
)
from kernel_cases import (
    HARD,
    INNER,
    SQUARED,
    Case,
    assert_nearest,
    assert_parity,
    error,
    make_problem,
    run_assign,
    run_lfq,
    run_soft_readout,
    run_straight_through,
    sharp_tolerance,
)

from gear_kernels import (
    Affinity,
    assign,
    cross_entropy_autograd,
    lfq_torch,
    lfq_triton,
    reference,
    resolve,
    soft_readout_backward_plan,
    tiles_triton,
)
from gear_kernels.cross_entropy_autograd import cross_entropy_operator
from gear_kernels.dispatch import interpreting, readout_backward
from gear_kernels.soft_readout import soft_readout
from gear_kernels.soft_readout_backward_plan import parts, plan_tiles
from gear_kernels.tiles_triton import prepare
from refusals import refused

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF_TYPES = [torch.float16, torch.bfloat16]
if interpreting():
    interpreted_bf16.install()
# Several blocks each way, none of them full, and both sides of the widths that change the path.
SHAPES = [
    Case(1, 1, 1, 1),
    Case(1, 150, 8, 17),
    Case(70, 1, 8, 17),
    Case(70, 150, 1, 1),
    Case(130, 150, 8, 70),
    Case(33, 150, 14, 17),
    Case(40, 100, 32, 300),
    Case(40, 100, 40, 17),
    Case(20, 70, 256, 33),
]
STRICT = [case._replace(affinity=affinity) for case in SHAPES for affinity in (SQUARED, INNER)]
SQUARED_RUNS = [(run, case) for run in (run_assign, run_soft_readout) for case in SHAPES + HARD]
INNER_CASES = [case._replace(affinity=INNER) for case in (*SHAPES[4:6], *HARD[:2])]
INNER_RUNS = [
    (run, case)
    for run in (run_assign, run_soft_readout, run_straight_through)
    for case in INNER_CASES
]


@pytest.fixture(autouse=True)
def device() -> None:
    """New tensors on the device under test, the generators' too."""
    torch.set_default_device(DEVICE)


def test_the_kernels_run_at_all() -> None:
    assert resolve("triton", DEVICE) == "triton"


@pytest.mark.parametrize(("run", "case"), SQUARED_RUNS + INNER_RUNS, ids=str)
def test_float32(run, case: Case) -> None:
    if run is run_assign:
        assert_nearest(case, run_assign("triton", case, torch.float32)["indices_N"])
    tolerance = 1e-5 if case in STRICT else sharp_tolerance(case)
    # Exponents of 1e4 / 0.01 differ by rounding alone: their values mean nothing.
    if case.kind != "wide":
        assert_parity(run, "triton", case, tolerance=tolerance)


@pytest.mark.parametrize("affinity", [SQUARED, INNER])
@pytest.mark.parametrize("temperature", [1e-3, 10.0])
def test_wide_affinities_stay_finite(temperature: float, affinity: Affinity) -> None:
    case = Case(40, 96, 8, 17, affinity, "wide", temperature, temperature)
    found = run_assign("triton", case, torch.float32)
    found |= run_soft_readout("triton", case, torch.float32)
    for name, value in found.items():
        assert value.isfinite().all(), name


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
@pytest.mark.parametrize("case", [Case(40, 100, 8, 70), Case(40, 100, 40, 17)], ids=str)
def test_half_precision_table(case: Case, dtype: torch.dtype) -> None:
    found = run_soft_readout("triton", case, torch.float32, dtype)
    assert found["out"].dtype == dtype
    assert_parity(run_soft_readout, "triton", case, dtype, tolerance=1e-5)
    assert_rounds_to_nearest(
        found["out"], run_soft_readout("reference", case, torch.float64)["out"]
    )


def assert_rounds_to_nearest(found: torch.Tensor, truth: torch.Tensor) -> None:
    """Errors have no direction: rounding towards zero loses half a unit on average.

    The parity rule cannot tell: twice the error of rounding to nearest is that of truncation.
    """
    unit = truth.abs().log2().floor().exp2() * torch.finfo(found.dtype).eps
    outwards = (found.double() - truth) * truth.sign() / unit
    # Of thousands of elements, each within about one unit.
    usual = truth.abs() > 0.1 * truth.abs().max()
    assert outwards[usual].mean().abs() < 0.08


@triton.jit
def convert_kernel(source_ptr, out_ptr, product_ptr, COUNT: tl.constexpr):
    """float32 to out's dtype, and that times its transpose, summed in float32."""
    places = tl.arange(0, COUNT)[:, None] * COUNT + tl.arange(0, COUNT)[None, :]
    rounded = tl.load(source_ptr + places).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + places, rounded)
    tl.store(product_ptr + places, tl.dot(rounded, tl.trans(rounded), input_precision="ieee"))


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
def test_conversion_and_products_are_torchs(dtype: torch.dtype) -> None:
    """To nearest, ties to even, over carries and signs; so interpreted as on a device."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    source = torch.randn(16, 16, generator=generator)
    unit = torch.finfo(dtype).eps
    # Ties to even both ways, just beside them, and a carry into the exponent.
    special = [1 + unit / 2, 1 + 3 * unit / 2, 1 + 0.51 * unit, 1 + 0.49 * unit, 2 - unit / 4, 0.0]
    source[0, :6] = torch.tensor(special)
    source[1] = -source[0]
    out, product = torch.empty(16, 16, dtype=dtype), torch.empty(16, 16)
    convert_kernel[(1,)](source, out, product, COUNT=16)
    assert torch.equal(out, source.to(dtype))
    expected = out.double() @ out.double().T
    torch.testing.assert_close(product.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["normal", "wide"])
@pytest.mark.parametrize("affinity", [SQUARED, INNER])
def test_given_log_sum_exp(affinity: Affinity, kind: str) -> None:
    """Neither the output nor the gradients depend on it, even where it is a little off."""
    case = Case(40, 70, 8, 17, affinity, kind)
    results = []
    for offset in (None, 0.0, 0.5):
        problem = make_problem(case, torch.float32)
        found = assign(*problem[:2], affinity=affinity, implementation="triton")
        given = None if offset is None else found.soft_log_sum_exp_N + offset
        out = soft_readout(*problem[:3], given, affinity=affinity, implementation="triton")
        out.backward(problem.probe)
        results.append([out.detach(), *(item.grad for item in problem[:3])])
    # Wide affinities leave one code: gradients are 0 but for rounding.
    compared = 4 if kind == "normal" else 1
    for result in results[1:]:
        assert all(value.isfinite().all() for value in result)
        for value, expected in zip(result[:compared], results[0], strict=False):
            assert error("grad", value, expected) < 5e-6


@pytest.mark.parametrize(
    "case", [Case(1, 0, 1, 1), Case(70, 0, 6, 17), Case(20, 0, 9, 70)], ids=str
)
def test_lfq(case: Case) -> None:
    assert_parity(run_lfq, "triton", case, tolerance=sharp_tolerance(case))


def test_lfq_with_several_blocks_of_the_low_half() -> None:
    generator = torch.Generator(DEVICE).manual_seed(0)
    shapes = (20, 2), (20, 128), (256, 17), (20, 17)
    high, low, table, grad = (torch.randn(*shape, generator=generator) for shape in shapes)
    found = (
        lfq_triton.forward(high, low, table),
        *lfq_triton.factor_gradients(high, low, table, grad),
    )
    truth = [item.double() for item in (high, low, table)]
    expected = lfq_torch.forward(*truth), *lfq_torch.factor_gradients(*truth, grad.double())
    for value, true in zip(found, expected, strict=True):
        assert error("", value, true) < 2e-6


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
def test_lfq_half_precision_table(dtype: torch.dtype) -> None:
    case = Case(40, 0, 6, 70)
    assert_parity(run_lfq, "triton", case, dtype, tolerance=sharp_tolerance(case))
    truth = run_lfq("reference", case, torch.float64)["out"]
    assert_rounds_to_nearest(run_lfq("triton", case, torch.float32, dtype)["out"], truth)


def test_several_launches_of_the_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Partial gradients of the codebook that would take too much memory are written in turns."""
    monkeypatch.setattr(soft_readout_backward_plan, "_PARTIAL_BYTES", 1)
    assert_parity(run_soft_readout, "triton", Case(260, 100, 8, 17))


CHUNK_CASES = [
    Case(130, 150, 8, 70),
    Case(40, 100, 32, 300),
    Case(1, 70, 8, 17),
    Case(70, 1, 14, 1),
    Case(130, 150, 8, 17, INNER),
    *(case for case in HARD if case.kind != "wide"),
]


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES], ids=str)
@pytest.mark.parametrize("case", CHUNK_CASES, ids=str)
def test_backward_in_chunks(case: Case, dtype, chunks: None) -> None:
    """Parity; and the forward has nothing to do with it."""
    tolerance = 1e-5 if case in CHUNK_CASES[:5] else sharp_tolerance(case)
    assert_parity(run_soft_readout, "triton", case, dtype, tolerance=tolerance)
    found = run_soft_readout("triton", case, torch.float32, dtype)
    again = run_soft_readout("triton", case, torch.float32, dtype)
    assert all(torch.equal(found[name], again[name]) for name in found)
    with readout_backward("whole"):
        whole = run_soft_readout("triton", case, torch.float32, dtype)
    assert torch.equal(found["out"], whole["out"])


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Chunks of one tile, two of them a group, and two row blocks' partial sums at a time."""
    monkeypatch.setattr(soft_readout_backward_plan, "_PULL_BYTES", 1)
    monkeypatch.setattr(soft_readout_backward_plan, "_PULL_ROWS", 64)
    monkeypatch.setattr(soft_readout_backward_plan, "_PARTIAL_BYTES", 2 * 64 * 4 * 9)
    with readout_backward("chunks"):
        yield


def test_chunks_and_groups_cover_all_once(chunks: None) -> None:
    """Several of each, the last of each in part."""
    problem = prepare(torch.zeros(300, 8), torch.zeros(150, 8), SQUARED)
    plan = plan_tiles(problem, torch.zeros(150, 17, dtype=torch.bfloat16))
    assert (plan.chunked, plan.chunk_codes, plan.group_codes) == (True, 64, 128)
    found = list(parts(plan, 300, 150))
    assert [part.codes for part in found] == [64, 64] * plan.blocks + [22] * plan.blocks
    assert plan.blocks == 3
    done = [(part.first_of_group, part.first_block) for part in found if part.is_last]
    assert done == [(group, block) for group in (0, 128) for block in range(3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 1, 1), (1, 0, 1)], ids=str)
def test_chunks_give_the_gradients_that_are_asked_for(needs, dtype, chunks: None) -> None:
    """Each is that of a call which needs all."""
    case = Case(130, 150, 8, 17)
    expected = run_soft_readout("triton", case, torch.float32, dtype)
    problem = make_problem(case, torch.float32, dtype)
    for item, need in zip(problem[:3], needs, strict=True):
        item.requires_grad_(bool(need))
    out = soft_readout(
        *problem[:3], temperature=case.soft_temperature, affinity=SQUARED, implementation="triton"
    )
    out.backward(problem.probe / case.tokens)
    for place, need in enumerate(needs):
        grad = problem[place].grad
        assert (grad is not None) == bool(need)
        assert grad is None or torch.equal(grad, expected[f"grad_{place}"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_chunks_compiled_whole(dtype, chunks: None) -> None:
    problem = make_problem(CASE, torch.float32, dtype)
    for operation in (readout_alone, joint):
        assert_compiled_equals_eager(operation, problem, Settings("triton", SQUARED))


def test_same_gradients_every_time() -> None:
    case = Case(130, 150, 8, 17)
    runs = [
        run_assign("triton", case, torch.float32) | run_soft_readout("triton", case, torch.float32)
        for _ in range(2)
    ]
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())


@pytest.mark.parametrize("width", [8, 40])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_compiled_whole(operation, width: int) -> None:
    """Widths on both sides of the one whose gradients take the torch path."""
    problem = make_problem(CASE._replace(width=width), torch.float32)
    assert_compiled_equals_eager(operation, problem, Settings("triton", SQUARED))


@pytest.mark.parametrize("width", [8, 40])
def test_compiled_whole_with_a_half_precision_table(width: int) -> None:
    problem = make_problem(CASE._replace(width=width), torch.float32, torch.bfloat16)
    for operation in OPERATIONS:
        assert_compiled_equals_eager(operation, problem, Settings("triton", SQUARED))


@pytest.mark.parametrize("affinity", [SQUARED, INNER])
def test_operators_are_what_they_say(affinity: Affinity) -> None:
    for name, (operator, arguments) in operator_calls("triton", affinity).items():
        assert torch.library.opcheck(operator, arguments), name


def test_too_wide_codes_are_refused_by_name_only() -> None:
    problem = make_problem(Case(4, 5, 300, 2), torch.float32)
    with refused(ValueError, "256 entries", 300):
        assign(*problem[:2], implementation="triton")
    with refused(ValueError, "float32", "float64"):
        assign(*make_problem(SHAPES[4], torch.float64)[:2], implementation="triton")
    assert tiles_triton.padded_width(9) == 16


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES], ids=str)
def test_liger_vocabulary_loss(dtype) -> None:
    """The library's function as it is called on CUDA: argument order, scale and gradients."""
    hidden, weight = torch.randn(13, 9, device=DEVICE), torch.randn(37, 9, device=DEVICE)
    targets = torch.randint(37, (13,), device=DEVICE)

    def run(loss, dtype) -> list[torch.Tensor]:
        inputs = [item.to(dtype).requires_grad_() for item in (hidden, weight)]
        value = loss(*inputs, targets)
        (2 * value).backward()
        return [value.detach(), *(item.grad for item in inputs)]

    hidden, weight = hidden.to(dtype), weight.to(dtype)
    truth = run(reference.vocabulary_cross_entropy, torch.float64)
    plain = run(reference.vocabulary_cross_entropy, dtype)
    tolerance = 1e-6 if dtype == torch.float32 else 2**-8
    for value, base, true in zip(
        run(cross_entropy_autograd.liger, dtype), plain, truth, strict=True
    ):
        assert error("", value, true) <= 2 * error("", base, true) + tolerance


@pytest.mark.parametrize("needs", [[True, True], [False, True], [False, False]])
def test_liger_in_a_graph_hands_on_its_gradients(needs: list[bool]) -> None:
    """The operator that a graph for CUDA holds, beside the same function in eager mode."""
    hidden, weight = torch.randn(13, 9, device=DEVICE), torch.randn(37, 9, device=DEVICE)
    targets = torch.randint(37, (13,), device=DEVICE)
    inputs = [item.requires_grad_(need) for item, need in zip((hidden, weight), needs, strict=True)]
    results = []
    for in_a_graph in (False, True):
        if in_a_graph:
            value = cross_entropy_operator(*inputs, targets, "liger", needs)[0]
        else:
            value = cross_entropy_autograd.liger(*inputs, targets)
        needed = [item for item in inputs if item.requires_grad]
        grads = torch.autograd.grad(2 * value, needed) if needed else ()
        results.append([value.detach(), *grads])
    assert len(results[0]) == 1 + sum(needs)
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
