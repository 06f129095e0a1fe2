"""What stands in front of the image tokens when decoding starts.

Shapes: R rows (images, then their null halves), P positions, H heads of width h, D model width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, cat


class Prefix(NamedTuple):
    """The condition of a batch: one input for all layers, or what they know of it already."""

    input_RD: Tensor | None
    """Embedded condition of one position, the first input of the blocks (a class)."""
    hidden_RD: Tensor | None = None
    """Residual stream that predicts the first token, where a longer condition went through all
    blocks beforehand (a caption)."""
    keys: tuple[Tensor, ...] = ()
    """Of each layer, (R, H, P, h), turned; right-aligned where rows have fewer than P."""
    values: tuple[Tensor, ...] = ()
    starts: tuple[int, ...] = ()
    """First position of each row that may be seen; (): all."""

    @property
    def num_rows(self) -> int:
        """Rows R."""
        first = self.input_RD if self.input_RD is not None else self.hidden_RD
        assert first is not None
        return len(first)

    @property
    def num_positions(self) -> int:
        """Positions P in the cache in front of the first image token's."""
        return self.keys[0].shape[2] if self.keys else 1

    def widened(self, positions: int) -> "Prefix":
        """So many positions, the new ones on the left and not to be seen."""
        more = positions - self.num_positions
        if more == 0:
            return self
        return self._replace(
            keys=tuple(F.pad(x, (0, 0, more, 0)) for x in self.keys),
            values=tuple(F.pad(x, (0, 0, more, 0)) for x in self.values),
            starts=tuple(start + more for start in self.starts),
        )


def join_prefixes(parts: Sequence[Prefix]) -> Prefix:
    """One batch of several, all as wide as the widest."""
    if parts[0].input_RD is not None:
        return Prefix(cat([part.input_RD for part in parts if part.input_RD is not None]))
    positions = max(part.num_positions for part in parts)
    parts = [part.widened(positions) for part in parts]
    return Prefix(
        input_RD=None,
        hidden_RD=cat([part.hidden_RD for part in parts if part.hidden_RD is not None]),
        keys=tuple(map(cat, zip(*(part.keys for part in parts), strict=True))),
        values=tuple(map(cat, zip(*(part.values for part in parts), strict=True))),
        starts=tuple(start for part in parts for start in part.starts),
    )
