"""LFQ, IBQ and the straight-through estimator through real DeepSpeed engines: N ranks = 1 rank,
with partitioned weights too. So are the discriminator's options, which the families are given with.
"""

import itertools

import family_case as case
import pytest
import torch
from worker_processes import run_workers

from reference_numbers import assert_close

STEPS = 3
CHOICES = tuple(itertools.product(case.FAMILIES, (0, 3)))


@pytest.fixture(scope="module")
def one_rank():
    choices = [(family, 0) for family in case.FAMILIES]
    [results] = run_workers(1, case.several_steps_each, 1, choices, STEPS)
    return dict(zip(case.FAMILIES, results, strict=True))


@pytest.fixture(scope="module")
def two_ranks():
    by_rank = run_workers(2, case.several_steps_each, 2, CHOICES, STEPS)
    return [dict(zip(CHOICES, results, strict=True)) for results in by_rank]


@pytest.mark.parametrize(("family", "zero_stage"), CHOICES)
def test_two_ranks_equal_one_with_the_joined_batch(one_rank, two_ranks, family, zero_stage):
    _, _, wanted = one_rank[family]
    averages = [v for k, v in wanted["discriminator"].items() if k.startswith("lecam.")]
    assert len(averages) == 2 * (family in case.DISCRIMINATORS)
    assert all(value != 0 for value in averages)
    for ranks in two_ranks:
        _, _, ours = ranks[family, zero_stage]
        for network, state in wanted.items():
            assert ours[network].keys() == state.keys()
            for key, value in state.items():
                assert_close(ours[network][key], value, 1e-5, f"{network}.{key}", floor=1e-7)


@pytest.mark.parametrize("family", case.FAMILIES)
def test_every_matrix_of_the_tokenizer_moves(one_rank, family):
    """The soft alignment included, for which the codebook crosses to the generator's engine."""
    numbers, before, after = one_rank[family]
    assert numbers["align_soft"] < 0.5
    still = [
        key
        for key, value in before["tokenizer"].items()
        if value.dim() > 1 and torch.equal(value, after["tokenizer"][key])
    ]
    assert still == []


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_the_estimator_moves_the_tokenizer_alone(zero_stage):
    """Whatever reaches the tokenizer through it, the generator's own update is the same."""
    choices = [(estimator, zero_stage) for estimator in ("vq", "straight-through")]
    [[(soft, _, a), (straight, _, b)]] = run_workers(1, case.several_steps_each, 1, choices, 1)
    assert straight["cross_entropy_straight_through"] == pytest.approx(straight["cross_entropy"])
    assert "cross_entropy_straight_through" not in soft
    moved = [key for key, value in a["tokenizer"].items() if not value.equal(b["tokenizer"][key])]
    assert "encoder.conv_in.weight" in moved
    for network in ("generator", "discriminator"):
        for key, value in a[network].items():
            assert_close(b[network][key], value, 1e-6, f"{network}.{key}", floor=1e-8)
