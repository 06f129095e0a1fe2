"""Draws of codes: filters, the chi-square of each, and the edges of the inverse distribution."""

import numpy as np
import pytest
import torch

from gear_dist.config.models import SamplingConfig
from gear_dist.inference.draws import Filters, draw_codes, filter_weights, weights_of
from gear_dist.inference.seeds import token_uniforms

LOGITS = torch.tensor([[0.5, 0.1, 0.3, 0.1]]).log()


def filters(**settings):
    return Filters.of(SamplingConfig(**settings), torch.device("cpu"))


def kept(logits, **settings):
    weights = filter_weights(weights_of(logits, None), filters(**settings))
    return weights[0].nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("top_k", "codes"), [(0, [0, 1, 2, 3]), (1, [0]), (2, [0, 2]), (3, [0, 1, 2, 3])]
)
def test_top_k_keeps_the_largest_and_what_equals_the_last(top_k, codes):
    assert kept(LOGITS, top_k=top_k) == codes


@pytest.mark.parametrize(
    ("top_p", "codes"),
    [(0.01, [0]), (0.45, [0]), (0.6, [0, 2]), (0.85, [0, 1, 2, 3]), (1.0, [0, 1, 2, 3])],
)
def test_top_p_is_the_smallest_set_that_reaches_p(top_p, codes):
    assert kept(LOGITS, top_p=top_p) == codes


@pytest.mark.parametrize(
    ("min_p", "codes"), [(0.0, [0, 1, 2, 3]), (0.3, [0, 2]), (0.7, [0]), (1.0, [0])]
)
def test_min_p_is_a_share_of_the_largest(min_p, codes):
    assert kept(LOGITS, min_p=min_p) == codes


def test_filters_apply_to_what_the_one_before_left():
    """Of 0.5 and 0.3, the first is 0.625: enough for a share of 0.6, not of 0.65."""
    assert kept(LOGITS, top_k=2, top_p=0.6) == [0]
    assert kept(LOGITS, top_k=2, top_p=0.65) == [0, 2]
    assert kept(LOGITS, top_k=2, top_p=0.65, min_p=0.61) == [0]


FILTERS = [
    {},
    {"temperature": 0.5},
    {"temperature": 3.0},
    {"top_k": 10},
    {"top_p": 0.8},
    {"min_p": 0.2},
    {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
]


def plain_probabilities(logits: np.ndarray, config: SamplingConfig) -> np.ndarray:
    """The filtered distribution by a plain loop over codes, in float64."""
    p = np.exp((logits - logits.max()) / config.temperature)
    p /= p.sum()
    order = np.argsort(-p)
    keep = order[: config.top_k] if config.top_k else order
    kept, total = [], 0.0
    for code in keep:
        if config.top_p == 1 or total < config.top_p * p[keep].sum():
            kept.append(code)
        total += p[code]
    kept = [code for code in kept if p[code] >= config.min_p * p.max()]
    filtered = np.zeros_like(p)
    filtered[kept] = p[kept]
    return filtered / filtered.sum()


@pytest.mark.parametrize("settings", FILTERS, ids=str)
def test_draws_follow_the_filtered_distribution(settings):
    """Pearson's chi-square of 40,000 draws at fixed seeds; no draw of a code that is filtered out.

    Codes that are expected fewer than 5 times count as one.
    """
    config = SamplingConfig(**settings)
    logits = np.random.default_rng(0).normal(size=60) * 1.5
    wanted = 40_000 * plain_probabilities(logits, config)
    uniforms = torch.from_numpy(token_uniforms(range(20_000), 2).ravel())
    many = torch.tensor(logits, dtype=torch.float32).expand(len(uniforms), -1)
    counts = draw_codes(many, uniforms, filters(**settings)).bincount(minlength=60).numpy()
    assert counts[wanted == 0].sum() == 0
    common = wanted >= 5
    bins = [*zip(counts[common], wanted[common], strict=True)]
    bins += [(counts[~common].sum(), wanted[~common].sum())] if wanted[~common].sum() else []
    chi_square = sum((count - want) ** 2 / want for count, want in bins)
    # Mean k, deviation sqrt(2 k): 4.5 deviations are beyond 1 in 10,000 for all these k.
    k = len(bins) - 1
    assert chi_square < k + 4.5 * (2 * k) ** 0.5, f"{chi_square:.1f} at {k} degrees"


def test_edges_of_the_inverse_distribution():
    """The smallest and largest uniform number never give a code that is filtered out."""
    logits = torch.zeros(2, 16384)
    logits[:, :100] = logits[:, -100:] = -torch.inf
    uniforms = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    assert draw_codes(logits, uniforms, filters()).tolist() == [100, 16283]
    one = filters(top_k=1)
    logits[:, 7] = 1.0
    assert draw_codes(logits, uniforms, one).tolist() == [7, 7]


@pytest.mark.parametrize("temperature", [0.0, 1e-320, 1e-30])
def test_next_to_no_temperature_is_greedy(temperature):
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0 - 1e-3]])
    uniforms = torch.tensor([0.999], dtype=torch.float64)
    assert draw_codes(logits, uniforms, filters(temperature=temperature)).tolist() == [1]


def test_greedy_takes_the_first_of_equals():
    logits = torch.tensor([[0.0, 2.0, 2.0]])
    greedy = filters(temperature=0)
    assert draw_codes(logits, torch.zeros(1, dtype=torch.float64), greedy).tolist() == [1]


@pytest.mark.parametrize("num_codes", [1, 2, 16384, 2**18, 2**20])
def test_sums_of_weights_do_not_overflow(num_codes):
    weights = weights_of(torch.zeros(1, num_codes), None)
    assert 2**61 <= weights.sum().item() <= 2**62


def test_deterministic_algorithms_are_enough():
    """torch refuses cumsum of floating point on CUDA in this mode; none is asked for here."""
    kinds = set()

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.cumsum.default:
                kinds.add(args[0].dtype)
            return func(*args, **(kwargs or {}))

    torch.use_deterministic_algorithms(True)
    try:
        with Watch():
            uniforms = torch.tensor([0.3], dtype=torch.float64)
            draw_codes(LOGITS, uniforms, filters(top_k=3, top_p=0.9, min_p=0.01))
    finally:
        torch.use_deterministic_algorithms(False)
    assert kinds == {torch.int64}
