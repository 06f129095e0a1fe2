"""Drawing codes from logits: temperature, top-k, top-p, min-p, and one uniform number a code.

Probabilities become whole numbers first. Their sums are exact in any order, so a draw is the same
on every device and in every batch for the same logits, a code that a filter removed has no weight
at all, and torch's deterministic mode, which refuses cumsum of floating point on CUDA, takes it.

Shapes: B images, K codes.
"""

from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from gear_dist.config.models import SamplingConfig

_SUM_BITS = 62
"""Bits of a sum of weights: int64 without its sign, and one to spare for rounding."""


class Filters(NamedTuple):
    """What `draw_codes` needs of the settings.

    Numbers are float64 scalars on the device, so that a compiled step serves all their values.
    """

    greedy: bool
    top_k: int
    """0: all."""
    temperature: Tensor | None
    """None: 1."""
    top_p: Tensor | None
    min_p: Tensor | None

    @classmethod
    def of(cls, config: SamplingConfig, device: torch.device) -> Self:
        """Those of a configuration."""

        def scalar(value: float) -> Tensor:
            return torch.tensor(value, dtype=torch.float64, device=device)

        return cls(
            greedy=config.temperature == 0,
            top_k=config.top_k,
            temperature=scalar(config.temperature) if config.temperature != 1 else None,
            top_p=scalar(config.top_p) if config.top_p < 1 else None,
            min_p=scalar(config.min_p) if config.min_p > 0 else None,
        )


def weights_of(logits_BK: Tensor, temperature: Tensor | None) -> Tensor:
    """Probabilities as whole numbers, int64: round(2^n exp((logit - largest) / temperature)).

    n is what the sum of K of them leaves in 62 bits: 48 for 16,384 codes.
    """
    bits = _SUM_BITS - (logits_BK.shape[-1] - 1).bit_length()
    below_BK = logits_BK - logits_BK.amax(dim=-1, keepdim=True)
    if temperature is not None:
        # In float64 no temperature is so small that 0 / temperature is not 0.
        below_BK = (below_BK.double() / temperature).float()
    return below_BK.exp_().mul_(2.0**bits).round_().long()


def filter_weights(weights_BK: Tensor, filters: Filters) -> Tensor:
    """Set the weights of codes that a filter removes to 0.

    In turn: top_k keeps the k largest; top_p the fewest of the largest whose share of what is left
    reaches p, at least one; min_p those of at least this share of the largest. Of equal weights all
    are kept or none.
    """
    if 0 < filters.top_k < weights_BK.shape[-1]:
        floor_B1 = weights_BK.topk(filters.top_k, dim=-1).values[:, -1:]
        weights_BK = weights_BK * (weights_BK >= floor_B1)
    if filters.top_p is not None:
        weights_BK = weights_BK * (weights_BK >= _top_p_floor(weights_BK, filters.top_p))
    if filters.min_p is not None:
        largest_B1 = weights_BK.amax(dim=-1, keepdim=True)
        weights_BK = weights_BK * (weights_BK >= filters.min_p * largest_B1.double())
    return weights_BK


def _top_p_floor(weights_BK: Tensor, top_p: Tensor) -> Tensor:
    """The smallest weight (B, 1) that top_p keeps."""
    sums_BK = (ordered_BK := _descending(weights_BK)).cumsum(dim=-1)
    too_few_BK = sums_BK.double() < top_p * sums_BK[:, -1:].double()
    last_B1 = too_few_BK.sum(dim=-1, keepdim=True).clamp(max=weights_BK.shape[-1] - 1)
    return ordered_BK.gather(1, last_B1)


def _descending(weights_BK: Tensor) -> Tensor:
    if weights_BK.device.type != "cpu" or torch.compiler.is_compiling():
        return weights_BK.sort(dim=-1, descending=True).values
    # numpy sorts values in vector registers: 20 times as fast as torch on a CPU with AVX-512.
    return torch.from_numpy(np.sort(weights_BK.numpy(), axis=-1)).flip(-1)


def draw_codes(logits_BK: Tensor, uniforms_B: Tensor, filters: Filters) -> Tensor:
    """Codes (B,): the first whose sum of weights, in the order of codes, exceeds u times all.

    At temperature 0 the likeliest code, of several the first.

    Args:
        logits_BK: fp32.
        uniforms_B: float64 in [0, 1), one for each image.
        filters: see there.
    """
    if filters.greedy:
        return logits_BK.argmax(dim=-1)
    weights_BK = filter_weights(weights_of(logits_BK, filters.temperature), filters)
    sums_BK = weights_BK.cumsum(dim=-1)
    total_B1 = sums_BK[:, -1:]
    # u times the total may round up to the total, which no sum exceeds.
    wanted_B1 = torch.minimum((uniforms_B[:, None] * total_B1).long(), total_B1 - 1)
    # Logits that are not finite give sums without sense; the engine tells of them at the end.
    codes_B = torch.searchsorted(sums_BK, wanted_B1, right=True)[:, 0]
    return codes_B.clamp(max=logits_BK.shape[-1] - 1)
