"""Seeds of samples and their noise."""

import numpy as np
import pytest

from gear_dist.errors import ConfigError
from gear_dist.inference import seeds as seeds_module
from gear_dist.inference.seeds import (
    MAX_SAMPLE_SEED,
    SeedMix,
    derive_seeds,
    prompt_seeds,
    single_prompt_seed,
    token_uniforms,
)
from refusals import refused


def test_the_first_of_a_series_has_its_seed():
    seeds = derive_seeds(7, range(5))
    assert seeds[0] == 7
    assert derive_seeds(seeds[3], [0]) == [seeds[3]]
    assert derive_seeds(7, [3, 1]) == [seeds[3], seeds[1]], "a place's seed is a function of both"
    assert derive_seeds(MAX_SAMPLE_SEED, [0]) == [2**64 - 1]


def test_a_seed_is_the_same_for_ever():
    """What another version gives must be what this one does: recorded seeds name samples."""
    assert derive_seeds(7, [1, 2]) == [2875738036014693257, 16129155333475108587]
    first = [0.8720734548204873, 0.29536538151378355, 0.4200976785072422]
    assert token_uniforms([7], 3)[0].tolist() == first


def test_series_share_no_sample():
    series = [derive_seeds(base, range(1000)) for base in range(20)]
    assert len({seed for seeds in series for seed in seeds}) == 20_000


def test_noise_is_a_function_of_the_seed_and_the_place():
    alone = token_uniforms([3], 64)
    assert np.array_equal(token_uniforms([9, 3, 2**64 - 1], 64)[1], alone[0])
    assert np.array_equal(token_uniforms([3], 5)[0], alone[0, :5])
    assert not np.array_equal(token_uniforms([2**64 - 1], 64), token_uniforms([0], 64))
    assert token_uniforms([], 4).shape == (0, 4)


def test_noise_is_uniform_over_seeds_and_over_places():
    """Counts of 100 bins, for neighbouring seeds at one place and for places of one seed."""
    draws = token_uniforms(range(20_000), 2)
    for values in (*draws.T, token_uniforms([1], 20_000)[0]):
        assert values.min() >= 0
        assert values.max() < 1
        counts = np.bincount((values * 100).astype(int), minlength=100)
        assert ((counts - 200) ** 2 / 200).sum() < 160  # chi-square, 99 degrees: p = 1e-4
    assert abs(np.corrcoef(draws.T)[0, 1]) < 0.03


@pytest.mark.parametrize("seed", [-1, 2**64, 10**40])
def test_what_is_no_seed_is_refused(seed):
    for use in (lambda: derive_seeds(seed, [0]), lambda: token_uniforms([1, seed], 4)):
        with refused(ConfigError, seed, 2**64 - 1):
            use()


class TestMixes:
    """Noise between two seeds."""

    def test_the_ends_are_the_seeds_themselves(self) -> None:
        first, second = token_uniforms([3, 2**64 - 1], 64)
        ends = token_uniforms([SeedMix(3, 2**64 - 1, 0), SeedMix(3, 2**64 - 1, 1)], 64)
        assert np.array_equal(ends, [first, second])

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
    def test_noise_stays_uniform(self, share: float) -> None:
        """A straight line between two uniform numbers would have variance 1/24 in the middle."""
        [found] = token_uniforms([SeedMix(1, 2, share)], 20_000)
        counts = np.histogram(found, 10, (0, 1))[0]
        # Chi-square with 9 degrees of freedom: more than 33.7 has a chance of 1 in 10,000.
        assert ((counts - 2000) ** 2 / 2000).sum() < 33.7
        assert found.min() >= 0
        assert found.max() < 1

    def test_near_shares_have_near_noise(self) -> None:
        path = [SeedMix(1, 2, share) for share in (0, 0.01, 0.5, 0.99, 1)]
        found = token_uniforms(path, 200)
        near = np.abs(found[[0, 4]] - found[[1, 3]]).max()
        assert 0 < near < 0.05
        assert np.abs(found[0] - found[2]).max() > 0.3

    def test_the_smallest_number_has_a_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(seeds_module, "_uniforms", lambda seed, count: np.zeros(count))
        [found] = token_uniforms([SeedMix(1, 2, 0.5)], 2)
        assert (found >= 0).all()
        assert (found < 1e-15).all()

    def test_seeds_of_64_bits(self) -> None:
        with refused(ConfigError, 2**64, "64 bits"):
            token_uniforms([SeedMix(1, 2**64, 0.5)], 2)


@pytest.mark.parametrize("prompt", ["", "a red dot"])
def test_the_seed_that_gives_a_prompt_its_own(prompt: str) -> None:
    for wanted in (0, 5, 2**64 - 1):
        assert prompt_seeds(single_prompt_seed(wanted, prompt), [prompt]) == [wanted]
