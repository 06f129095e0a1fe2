"""Seeds of samples, and the noise that a seed gives: the same for every batch, order and machine.

Every sample has a seed of its own, a whole number of 64 bits. Its noise is a function of (seed,
place of the token), so a sample does not depend on what is sampled beside it. No torch.
Source: splitmix64 (Steele, Lea, Flood 2014); Philox (Salmon et al. 2011), numpy's raw stream, which
numpy promises to keep.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import xxhash

from gear_dist.errors import ConfigError

MAX_SAMPLE_SEED = 2**64 - 1
_WEYL = 0x9E3779B97F4A7C15
_UNUSED_BITS = 11
"""A float64 takes 53 of 64 bits."""


def derive_seeds(seed: int, indices: Iterable[int]) -> list[int]:
    """Seeds of the samples at these places of a series.

    Index 0 gives the seed itself, so that a sample's recorded seed asks for that sample alone;
    index i gives mix(mix(seed) + i). Two series share a sample by a chance of 2^-64 a pair.

    Raises:
        ConfigError: a seed or index of more than 64 bits.
    """
    check_seeds([seed])
    indices = list(indices)
    check_seeds(indices)
    start = _mix(seed)
    return [_mix(start + index) if index else seed for index in indices]


def prompt_seeds(seed: int, prompts: Sequence[str]) -> list[int]:
    """Seeds of images of prompts: of the seed, the prompt, and how often it came before.

    So a prompt's images stay the same when others join or leave the list. An empty prompt's first
    image has the seed itself.

    Raises:
        ConfigError: a seed of more than 64 bits.
    """
    counts: Counter[str] = Counter()
    found = []
    for prompt in prompts:
        found.append(prompt_seed(seed, prompt, counts[prompt]))
        counts[prompt] += 1
    return found


def prompt_seed(seed: int, prompt: str, count: int) -> int:
    """The seed of a prompt's image, of which there were `count` before; see `prompt_seeds`."""
    data = prompt_bytes(prompt)
    own = seed ^ (xxhash.xxh3_64_intdigest(data) if data else 0)
    return derive_seeds(own, [count])[0]


def prompt_bytes(prompt: str) -> bytes:
    """A prompt in UTF-8.

    Raises:
        ConfigError: it has none, as bytes of a command line that are no UTF-8.
    """
    try:
        return prompt.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"prompt {prompt!a}: is no text in UTF-8") from None


def single_prompt_seed(sample_seed: int, prompt: str) -> int:
    """The seed that asks for a prompt's sample alone, as the first of its prompt: the inverse of
    `prompt_seed` with `count` 0."""
    return prompt_seed(sample_seed, prompt, 0)


class SeedMix(NamedTuple):
    """Noise between that of two seeds, from the first, share 0, to the second, share 1.

    Uniform numbers u and v become normal ones, which turn by a quarter: Phi(cos(a) Phi^-1(u) +
    sin(a) Phi^-1(v)), a = share pi / 2. So noise at every share is uniform, as a sample's must be;
    a straight line between u and v would favour the middle.
    """

    first: int
    second: int
    share: float


Seed = int | SeedMix
"""What gives a sample its noise."""


def check_seeds(seeds: Iterable[int]) -> None:
    """Refuse what is no seed.

    Raises:
        ConfigError: it is negative, or has more than 64 bits.
    """
    for seed in seeds:
        if not 0 <= seed <= MAX_SAMPLE_SEED:
            raise ConfigError(f"seed {seed} is out of range: use 0 to {MAX_SAMPLE_SEED} (64 bits)")


def token_uniforms(seeds: Sequence[Seed], num_tokens: int) -> np.ndarray:
    """Uniform numbers (B, L) in [0, 1), float64; of seeds that are not mixed, multiples of 2^-53.

    Raises:
        ConfigError: a seed of more than 64 bits.
    """
    rows = [
        _mixed_uniforms(seed, num_tokens)
        if isinstance(seed, SeedMix)
        else _uniforms(seed, num_tokens)
        for seed in seeds
    ]
    return np.stack(rows) if rows else np.empty((0, num_tokens))


def _uniforms(seed: int, num_tokens: int) -> np.ndarray:
    check_seeds([seed])
    bits_L = np.random.Philox(key=seed).random_raw(num_tokens)
    return (bits_L >> np.uint64(_UNUSED_BITS)) * 2.0**-53


def _mixed_uniforms(mix: SeedMix, num_tokens: int) -> np.ndarray:
    first_L, second_L = (_uniforms(seed, num_tokens) for seed in (mix.first, mix.second))
    if mix.share in (0, 1):
        return second_L if mix.share else first_L
    angle, normal = mix.share * math.pi / 2, NormalDist()
    found = []
    for u, v in zip(first_L.tolist(), second_L.tolist(), strict=True):
        # 0 is among the numbers, and has no normal one.
        x, y = (normal.inv_cdf(max(number, 2.0**-54)) for number in (u, v))
        found.append(normal.cdf(math.cos(angle) * x + math.sin(angle) * y))
    return np.clip(found, 0, 1 - 2.0**-53)


def _mix(value: int) -> int:
    """splitmix64's next number after a state: a bijection of 64 bits in which every bit counts."""
    value = (value + _WEYL) & MAX_SAMPLE_SEED
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & MAX_SAMPLE_SEED
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & MAX_SAMPLE_SEED
    return value ^ value >> 31
