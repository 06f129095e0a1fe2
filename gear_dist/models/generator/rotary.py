"""Two-dimensional rotary position embedding over the token grid.

Shapes: L = side^2 tokens, S = 1 + L positions (class token first), h width of a head.
"""

from functools import lru_cache

import torch
from torch import Tensor

BASE = 10000.0


@lru_cache(maxsize=16)
def rotary_table(side: int, head_width: int, device: torch.device) -> Tensor:
    """Cosines and sines (S, h / 2, 2), fp32.

    Pairs 0 .. h/4 - 1 turn with the row, h/4 .. h/2 - 1 with the column, at frequencies
    10000^(-2i / (h/2)). Row 0, the class token's, is all zeros, as in the public checkpoints:
    its query and key vanish. Cached, and not a module buffer: a bf16 engine would round it.
    """
    quarter = head_width // 4
    exponents = torch.arange(quarter, dtype=torch.float32) * 2 / (head_width // 2)
    frequencies = 1.0 / BASE**exponents
    angles = torch.arange(side, dtype=torch.float32)[:, None] * frequencies
    rows = angles[:, None, :].expand(side, side, quarter)
    columns = angles[None, :, :].expand(side, side, quarter)
    grid = torch.cat([rows, columns], dim=-1).reshape(side * side, 2 * quarter)
    table = torch.stack([grid.cos(), grid.sin()], dim=-1)
    return torch.cat([torch.zeros(1, 2 * quarter, 2), table]).to(device)


def at_least_fp32(x: Tensor) -> Tensor:
    """The tensor in fp32; float64 stays, so that tests can compare in it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rotate(x_BSHh: Tensor, table: Tensor) -> Tensor:
    """Turn neighbouring pairs (a, b) -> (a cos - b sin, b cos + a sin), in fp32 or float64.

    Args:
        x_BSHh: queries or keys (B, S, heads, h).
        table: rows (S, h / 2, 2) of `rotary_table` for these positions.
    """
    pairs = at_least_fp32(x_BSHh).unflatten(-1, (-1, 2))
    cos, sin = table[None, :, None].unbind(-1)
    a, b = pairs.unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x_BSHh.dtype)
