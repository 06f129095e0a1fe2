"""Keys and values of earlier positions, for sampling a token at a time."""

import torch
from torch import Tensor


class KeyValueCache:
    """Keys and values of one attention layer, allocated for all positions at once.

    Where to write is a tensor and nothing is reallocated, so that a compiled step serves every
    position.
    """

    def __init__(self, batch: int, positions: int, heads: int, head_width: int, like: Tensor):
        shape = (batch, heads, positions, head_width)
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.values = torch.zeros(shape, dtype=like.dtype, device=like.device)

    def update(
        self, keys: Tensor, values: Tensor, positions_S: Tensor, filled: int
    ) -> tuple[Tensor, Tensor]:
        """Write S new positions.

        Args:
            keys: (B, heads, S, head width).
            values: likewise.
            positions_S: where they belong, int64.
            filled: positions that count from now on, the new ones included.

        Returns:
            Keys and values (B, heads, filled, head width) of all these, as views.
        """
        self.keys.index_copy_(2, positions_S, keys)
        self.values.index_copy_(2, positions_S, values)
        return self.keys[:, :, :filled], self.values[:, :, :filled]
