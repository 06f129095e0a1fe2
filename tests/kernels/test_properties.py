"""Random shapes, scales and temperatures: what must hold for all of them."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import (
    FLOAT32_EPS,
    INNER,
    SQUARED,
    Case,
    assert_nearest,
    error,
    make_problem,
    run_assign,
    run_lfq,
    run_soft_readout,
)

from gear_kernels import lfq_assign, lfq_soft_readout

CASES = st.builds(
    Case,
    tokens=st.integers(1, 40),
    codes=st.integers(1, 70),
    width=st.integers(1, 20),
    columns=st.integers(1, 9),
    affinity=st.sampled_from([SQUARED, INNER]),
    kind=st.sampled_from(["normal", "duplicates", "equal", "wide"]),
    entropy_temperature=st.floats(1e-3, 10),
    soft_temperature=st.floats(1e-3, 10),
)
SETTINGS = settings(max_examples=150, deadline=None, derandomize=True, database=None)


@SETTINGS
@given(CASES)
def test_any_problem(case: Case) -> None:
    found = run_assign("torch", case, torch.float32)
    found |= {f"soft_{k}": v for k, v in run_soft_readout("torch", case, torch.float32).items()}
    for name, value in found.items():
        assert value.isfinite().all(), name
    assert_nearest(case, found["indices_N"])
    mean = found["mean_probabilities_K"]
    assert (mean >= 0).all()
    assert abs(mean.sum().item() - 1) < 1e-5
    assert -1e-4 <= found["token_entropy"] <= torch.tensor(case.codes).log() + 1e-4
    assert 1 - 1e-4 <= found["effective_codes"] <= case.codes * (1 + 1e-4)
    table = make_problem(case, torch.float32).table.detach()
    low, high = table.amin(0), table.amax(0)
    slack = 1e-5 * table.abs().max()
    assert (found["soft_out"] >= low - slack).all()
    assert (found["soft_out"] <= high + slack).all()


@SETTINGS
@given(CASES)
def test_error_is_that_of_rounded_affinities(case: Case) -> None:
    """Rounding of s by eps |s| moves exponents by eps |s| / T: the outputs by no more than that."""
    truth = run_soft_readout("reference", case, torch.float64)["out"]
    problem = make_problem(case, torch.float64)
    size = problem.latents.norm(dim=1).max() + problem.codebook.norm(dim=1).max()
    shake = FLOAT32_EPS * (case.width + 4) * size.item() ** 2 / case.soft_temperature
    found = run_soft_readout("torch", case, torch.float32)["out"]
    scale = problem.table.abs().max() / truth.abs().max()
    assert error("out", found, truth) <= min(2 * shake + 1e-5, 2.0) * scale.item()


@SETTINGS
@given(
    tokens=st.integers(1, 40),
    width=st.integers(1, 10),
    columns=st.integers(1, 9),
    temperature=st.floats(1e-3, 10),
)
def test_lfq_equals_the_dense_softmax(
    tokens: int, width: int, columns: int, temperature: float
) -> None:
    case = Case(
        tokens, 0, width, columns, entropy_temperature=temperature, soft_temperature=temperature
    )
    truth, found = (run_lfq(name, case, torch.float64) for name in ("reference", "torch"))
    assert torch.equal(found["indices_N"], truth["indices_N"])
    for name, value in truth.items():
        assert error(name, found[name], value, case) < 1e-9, name


def test_lfq_counts_zero_as_minus_one_and_bit_i_as_two_to_the_i() -> None:
    latents = torch.tensor([[0.0, 0.0, 0.0], [0.1, -0.2, 0.0], [-1.0, 0.3, 2.0]])
    assert lfq_assign(latents).indices_N.tolist() == [0, 1, 6]
    hard = lfq_soft_readout(latents[2:], torch.arange(8.0)[:, None], temperature=1e-3)
    assert hard.item() == 6
