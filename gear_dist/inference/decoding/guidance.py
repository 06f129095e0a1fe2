"""Guidance over the tokens of an image: its scale at each, and what a generator must have for it.

Shapes: L tokens.
"""

import math

from gear_dist.config.models import GeneratorConfig, SamplingConfig
from gear_dist.errors import ConfigError


def guidance_scales(config: SamplingConfig, num_tokens: int) -> list[float]:
    """Scale s_t of each token; see `SamplingConfig.guidance_schedule` for the formulas."""
    shape = _SHAPES[config.guidance_schedule]
    start, width = config.guidance_start, config.guidance_end - config.guidance_start
    places = [t / max(1, num_tokens - 1) for t in range(num_tokens)]
    return [1 + (config.guidance - 1) * shape((x - start) / width) for x in places]


def _ramp(y: float) -> float:
    return min(1.0, max(0.0, y))


_SHAPES = {
    "constant": lambda y: 1.0,
    # Half a unit of rounding, so that a token at the end itself is inside.
    "interval": lambda y: float(-1e-9 <= y <= 1 + 1e-9),
    "linear": _ramp,
    "cosine": lambda y: (1 - math.cos(math.pi * _ramp(y))) / 2,
}
"""Share of the guidance at y, 0 at guidance_start and 1 at guidance_end."""


def count_guided(scales: list[float]) -> int:
    """Tokens up to the last guided one: the null half runs for these, and for no later one."""
    return max((t + 1 for t, scale in enumerate(scales) if scale != 1), default=0)


def check_sampling(sampling: SamplingConfig, generator: GeneratorConfig, num_codes: int) -> None:
    """Refuse settings that a generator cannot follow.

    Raises:
        ConfigError: guidance without a null class, or a top_k of more codes than there are.
    """
    if sampling.guidance != 1 and generator.class_dropout == 0:
        raise ConfigError(
            f"sampling.guidance={sampling.guidance} needs a null class, and this generator was "
            "trained with generator.class_dropout=0: use sampling.guidance=1"
        )
    if sampling.top_k > num_codes:
        raise ConfigError(
            f"sampling.top_k={sampling.top_k} is more than the codebook has: use at most "
            f"{num_codes}, or 0 for all codes"
        )
