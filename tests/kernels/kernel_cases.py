"""Inputs and the parity rule that tests of every implementation share.

Parity: err(implementation, float64 truth) <= err(reference in the same dtype, truth) + tolerance.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gear_kernels import (
    Affinity,
    assign,
    lfq_assign,
    lfq_soft_readout,
    soft_readout,
    straight_through_readout,
)

SQUARED, INNER = Affinity.SQUARED_DISTANCE, Affinity.INNER_PRODUCT
FLOAT32_EPS = 2.0**-23


class Case(NamedTuple):
    """One problem; tensors are made in float64 and rounded to the dtype under test."""

    tokens: int
    codes: int
    width: int
    columns: int
    affinity: Affinity = SQUARED
    kind: str = "normal"
    """normal; duplicates: each code many times; equal: latents are codes; wide: affinities \
spread over 1e4."""
    entropy_temperature: float = 0.01
    soft_temperature: float = 0.1


class Problem(NamedTuple):
    latents: Tensor
    codebook: Tensor
    table: Tensor
    probe: Tensor
    """Weights of the read-out in the loss."""
    mean_probe: Tensor
    """Weights of the mean probabilities in the loss."""


SHAPES = [
    Case(1, 1, 1, 1),
    Case(1, 300, 8, 17),
    Case(70, 1, 8, 17),
    Case(70, 300, 1, 1),
    Case(70, 300, 8, 17),
    Case(33, 257, 14, 130),
    Case(65, 130, 32, 5),
    Case(19, 75, 256, 33),
]
HARD = [
    Case(40, 96, 8, 17, kind="duplicates"),
    Case(40, 96, 8, 17, kind="equal"),
    Case(40, 96, 8, 17, kind="wide"),
    Case(40, 96, 8, 17, entropy_temperature=1e-3, soft_temperature=1e-3),
    Case(40, 96, 8, 17, entropy_temperature=10.0, soft_temperature=10.0),
]


def make_problem(case: Case, dtype: torch.dtype, table_dtype: torch.dtype | None = None) -> Problem:
    """Inputs of a case, the same values whatever the dtype; all require gradients but probes."""
    generator = torch.Generator().manual_seed(case.tokens * 1000 + case.codes)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    latents, codebook = normal(case.tokens, case.width), normal(case.codes, case.width)
    if case.width > 1:
        latents, codebook = functional.normalize(latents), functional.normalize(codebook)
    if case.kind == "duplicates":
        codebook = codebook[torch.randint(min(5, case.codes), (case.codes,), generator=generator)]
    elif case.kind == "equal":
        latents = codebook[torch.randint(case.codes, (case.tokens,), generator=generator)]
    elif case.kind == "wide":
        codebook = codebook * torch.logspace(-2, 2, case.codes, dtype=torch.float64)[:, None]
        latents = latents * 10
    table, probe = normal(case.codes, case.columns), normal(case.tokens, case.columns)
    table_dtype = table_dtype or dtype
    # Rounded to float32 first, so that the truth is of the very numbers the implementation gets.
    latents, codebook = latents.float().to(dtype), codebook.float().to(dtype)
    table, probe = (item.bfloat16().to(table_dtype) for item in (table, probe))
    mean_probe = normal(case.codes).float().to(dtype)
    inputs = [item.clone().requires_grad_() for item in (latents, codebook, table)]
    return Problem(*inputs, probe, mean_probe)


def run_assign(implementation: str, case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every member and the gradients of `assign`, under a loss with both entropies."""
    problem = make_problem(case, dtype)
    found = assign(
        problem.latents,
        problem.codebook,
        affinity=case.affinity,
        entropy_temperature=case.entropy_temperature,
        soft_temperature=case.soft_temperature,
        implementation=implementation,
    )
    mean_loss = (found.mean_probabilities_K * problem.mean_probe).sum()
    (found.token_entropy + mean_loss).backward()
    named = {name: value.detach() for name, value in found._asdict().items()}
    return named | _grads(problem.latents, problem.codebook)


def run_soft_readout(
    implementation: str, case: Case, dtype: torch.dtype, table_dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Output and gradients of `soft_readout`."""
    problem = make_problem(case, dtype, table_dtype)
    out = soft_readout(
        problem.latents,
        problem.codebook,
        problem.table,
        temperature=case.soft_temperature,
        affinity=case.affinity,
        implementation=implementation,
    )
    out.backward(problem.probe / case.tokens)
    return {"out": out.detach()} | _grads(*problem[:3])


def run_straight_through(implementation: str, case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """Output and gradients of `straight_through_readout` at the case's soft temperature."""
    problem = make_problem(case, dtype)
    truth = make_problem(case, torch.float64)
    # The truth's indices for everyone: a near-tie must not decide the comparison.
    indices = assign(
        truth.latents, truth.codebook, affinity=case.affinity, implementation="reference"
    ).indices_N
    out = straight_through_readout(
        problem.latents,
        problem.codebook,
        problem.table,
        indices,
        temperature=case.soft_temperature,
        affinity=case.affinity,
        implementation=implementation,
    )
    out.backward(problem.probe / case.tokens)
    return {"out": out.detach()} | _grads(*problem[:3])


def run_lfq(
    implementation: str, case: Case, dtype: torch.dtype, table_dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Every member and the gradients of `lfq_assign` and `lfq_soft_readout`; codes = 2^width."""
    case = case._replace(codes=2**case.width)
    problem = make_problem(case, dtype, table_dtype)
    latents = (problem.latents.detach() * 0.1).requires_grad_()
    found = lfq_assign(
        latents,
        entropy_temperature=case.entropy_temperature,
        soft_temperature=case.soft_temperature,
        implementation=implementation,
    )
    out = lfq_soft_readout(
        latents,
        problem.table,
        temperature=case.soft_temperature,
        implementation=implementation,
    )
    mean_loss = (found.mean_probabilities_K * problem.mean_probe).sum()
    read_loss = (out.to(dtype) * problem.probe.to(dtype)).mean()
    (found.token_entropy + mean_loss + read_loss).backward()
    named = {name: value.detach() for name, value in found._asdict().items()}
    return named | {"out": out.detach()} | _grads(latents, problem.table)


def _grads(*inputs: Tensor) -> dict[str, Tensor]:
    names = "grad_0", "grad_1", "grad_2"
    grads = zip(names, (item.grad for item in inputs), strict=False)
    return {name: grad for name, grad in grads if grad is not None}


def assert_parity(
    run: Callable[..., dict[str, Tensor]],
    implementation: str,
    case: Case,
    table_dtype: torch.dtype | None = None,
    tolerance: float = 3e-6,
) -> None:
    """Check `run` of an implementation against the float64 reference, by the parity rule.

    Twice the reference's own error is allowed: both are maxima of rounding errors of one size.
    """
    table_dtypes = () if table_dtype is None else (table_dtype,)
    truth = run("reference", case, torch.float64)
    plain = run("reference", case, torch.float32, *table_dtypes)
    found = run(implementation, case, torch.float32, *table_dtypes)
    assert found.keys() == truth.keys()
    for name, value in truth.items():
        assert found[name].shape == value.shape, name
        assert found[name].isfinite().all(), name
        if name == "indices_N":
            continue
        allowed = 2 * error(name, plain[name], value, case) + tolerance
        assert error(name, found[name], value, case) <= allowed, name


def sharp_tolerance(case: Case) -> float:
    """What rounding of normalised affinities (up to 4) does to exponents s / T."""
    temperature = min(case.entropy_temperature, case.soft_temperature)
    return 3e-6 + 4 * FLOAT32_EPS / temperature


def error(name: str, actual: Tensor, truth: Tensor, case: Case | None = None) -> float:
    """max |actual - truth| / max |truth|, but not relative to less than rounding can resolve.

    Affinities, log-sum-exps and entropies: 1, the size of the terms that cancel in them.
    Gradients, which can be 0 in theory: a share of their usual size, of products of D columns.
    """
    floor = 1.0 if name in ("affinity_N", "soft_log_sum_exp_N", "token_entropy") else 1e-30
    if case is not None and name.startswith("grad"):
        temperature = max(case.entropy_temperature, case.soft_temperature)
        floor = 0.2 * case.columns**0.5 / (case.tokens * temperature)
    scale = truth.double().abs().max().clamp_min(floor)
    return ((actual.double() - truth.double()).abs().max() / scale).item()


def assert_nearest(case: Case, indices: Tensor) -> None:
    """The chosen code is the float64 argmax up to float32 rounding, and the first of its equals."""
    problem = make_problem(case, torch.float64)
    latents, codebook = problem.latents.detach(), problem.codebook.detach()
    scores = latents @ codebook.T
    sizes = latents.norm(dim=1)[:, None] * codebook.norm(dim=1)
    if case.affinity == SQUARED:
        scores = 2 * scores - latents.square().sum(1, keepdim=True) - codebook.square().sum(1)
        sizes = (latents.norm(dim=1)[:, None] + codebook.norm(dim=1)).square()
    rounding = FLOAT32_EPS * (case.width + 4) * sizes.amax(1)
    best = scores.gather(1, indices[:, None]).squeeze(1)
    assert (scores.amax(1) - best <= rounding).all()
    equal_KK = (codebook[:, None] == codebook[None]).all(2)
    first = equal_KK.int().argmax(1)
    assert torch.equal(first[indices], indices)
