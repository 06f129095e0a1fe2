"""The blocked torch path against the float64 reference: values, gradients, indices."""

import pytest
import torch
from kernel_cases import (
    HARD,
    INNER,
    SHAPES,
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

from gear_kernels import assign, soft_readout, tiles_torch, vocabulary_cross_entropy

HARD_BOTH = [case._replace(affinity=affinity) for case in HARD for affinity in (SQUARED, INNER)]
RUNS = [run_assign, run_soft_readout, run_straight_through]
LFQ_CASES = [
    Case(1, 2, 1, 1),
    Case(70, 0, 6, 17),
    Case(33, 0, 9, 5),
    Case(20, 0, 8, 3, soft_temperature=1e-3, entropy_temperature=1e-3),
    Case(20, 0, 8, 3, soft_temperature=10.0, entropy_temperature=10.0),
]


@pytest.fixture(params=["many blocks", "one block"], autouse=True)
def blocking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once with blocks of 16 rows, so that their sums meet, and once as it comes."""
    if request.param == "many blocks":
        monkeypatch.setattr(tiles_torch, "_CPU_TILE_ELEMENTS", 1)


@pytest.mark.parametrize("affinity", [SQUARED, INNER])
@pytest.mark.parametrize("case", SHAPES + HARD, ids=str)
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__)
def test_float32(run, case: Case, affinity) -> None:
    case = case._replace(affinity=affinity)
    if run is run_assign:
        for name in ("torch", "reference"):
            assert_nearest(case, run_assign(name, case, torch.float32)["indices_N"])
    # Exponents of 1e4 / 0.01 differ by rounding alone: their values mean nothing.
    if case.kind != "wide":
        tolerance = sharp_tolerance(case) if case in HARD_BOTH else 3e-6
        assert_parity(run, "torch", case, tolerance=tolerance)


@pytest.mark.parametrize("temperature", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("affinity", [SQUARED, INNER])
def test_wide_affinities_stay_finite(affinity, temperature: float) -> None:
    case = Case(40, 96, 8, 17, affinity, "wide", temperature, temperature)
    found = run_assign("torch", case, torch.float32) | run_soft_readout(
        "torch", case, torch.float32
    )
    for name, value in found.items():
        assert value.isfinite().all(), name
    assert_nearest(case, found["indices_N"])
    total = found["mean_probabilities_K"].sum().item()
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("affinity", [SQUARED, INNER])
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__)
def test_float64_is_the_reference_to_rounding(run, affinity) -> None:
    case = Case(70, 300, 8, 17, affinity)
    truth, found = (run(name, case, torch.float64) for name in ("reference", "torch"))
    for name, value in truth.items():
        assert error(name, found[name], value, case) < 1e-12, name
        assert found[name].dtype == value.dtype


@pytest.mark.parametrize("run", [run_soft_readout, run_lfq], ids=lambda run: run.__name__)
def test_bfloat16_table(run) -> None:
    case = Case(70, 256, 8, 33)
    found = run("torch", case, torch.float32, torch.bfloat16)
    assert found["out"].dtype == torch.bfloat16
    # Probabilities are rounded to bfloat16 for the product, in the reference as well.
    assert_parity(run, "torch", case, torch.bfloat16, tolerance=2**-9)


@pytest.mark.parametrize("case", LFQ_CASES, ids=str)
def test_lfq(case: Case) -> None:
    assert_parity(run_lfq, "torch", case, tolerance=sharp_tolerance(case))
    truth = run_lfq("reference", case, torch.float64)
    found = run_lfq("torch", case, torch.float64)
    assert torch.equal(found["indices_N"], truth["indices_N"])
    for name, value in truth.items():
        assert error(name, found[name], value, case) < 1e-11, name


@pytest.mark.parametrize(
    "needs", [(True, False, False), (False, True, False), (False, False, True)], ids=str
)
def test_partial_gradients(needs) -> None:
    case = Case(70, 300, 8, 17)
    grads = {}
    for name in ("reference", "torch"):
        problem = make_problem(case, torch.float64)
        inputs = [
            item.detach().requires_grad_(need)
            for item, need in zip(problem[:3], needs, strict=True)
        ]
        out = soft_readout(*inputs, implementation=name)
        found = assign(*inputs[:2], implementation=name)
        loss = (out * problem.probe).sum()
        if needs[0] or needs[1]:
            loss = loss + found.token_entropy
        loss.backward()
        grads[name] = [item.grad for item in inputs]
    for found_grad, true_grad in zip(grads["torch"], grads["reference"], strict=True):
        assert (found_grad is None) == (true_grad is None)
        if true_grad is not None:
            assert error("grad", found_grad, true_grad) < 1e-12


@pytest.mark.parametrize("member", ["token_entropy", "mean_probabilities_K"])
def test_each_entropy_alone(member: str) -> None:
    case = Case(70, 300, 8, 17)
    grads = []
    for name in ("reference", "torch"):
        problem = make_problem(case, torch.float64)
        value = getattr(assign(*problem[:2], implementation=name), member)
        weight = problem.mean_probe if value.ndim else 3.0
        (value * weight).sum().backward()
        grads.append((problem.latents.grad, problem.codebook.grad))
    for true_grad, found_grad in zip(*grads, strict=True):
        assert error("grad", found_grad, true_grad) < 1e-12


def test_non_contiguous_inputs() -> None:
    case = Case(70, 300, 8, 17)
    problem = make_problem(case, torch.float64)
    plain = soft_readout(*problem[:3], implementation="torch")
    turned = [item.detach().T.contiguous().T for item in problem[:3]]
    assert not turned[0].is_contiguous()
    assert torch.allclose(soft_readout(*turned, implementation="torch"), plain, rtol=1e-12)
    found, expected = (assign(*pair[:2], implementation="torch") for pair in (turned, problem))
    assert torch.equal(found.indices_N, expected.indices_N)
    assert torch.allclose(found.token_entropy, expected.token_entropy, rtol=1e-12)


def test_straight_through_value_is_the_row_itself() -> None:
    case = Case(70, 300, 8, 17, INNER)
    problem = make_problem(case, torch.float32)
    indices = assign(*problem[:2], affinity=INNER, implementation="torch").indices_N
    found = run_straight_through("torch", case, torch.float32)
    assert torch.equal(found["out"], problem.table.detach()[indices])


@pytest.mark.parametrize("shape", [(1, 1, 1), (50, 77, 13), (40, 300, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_vocabulary_cross_entropy(dtype, shape) -> None:
    tokens, vocabulary, width = shape

    def run(name: str, dtype) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(tokens, width, generator=generator).bfloat16()
        weight = (3 * torch.randn(vocabulary, width, generator=generator)).bfloat16()
        targets = torch.randint(vocabulary, (tokens,), generator=generator)
        inputs = [item.to(dtype).requires_grad_() for item in (hidden, weight)]
        loss = vocabulary_cross_entropy(*inputs, targets, name)
        (2 * loss).backward()
        return [loss.detach(), *(item.grad for item in inputs)]

    truth, plain = run("reference", torch.float64), run("reference", dtype)
    found = run("torch", dtype)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2**-8}[dtype]
    for value, base, true in zip(found, plain, truth, strict=True):
        assert value.dtype == base.dtype
        assert error("", value, true) <= 2 * error("", base, true) + tolerance
