"""What a step of decoding does, whatever computes it."""

from typing import Protocol

from torch import Tensor

from gear_dist.inference.draws import Filters
from gear_dist.models.generator.prefix import Prefix


class Step(Protocol):
    """Decodes batches of one size, a token at a time. Shapes: B images, L tokens."""

    def begin(
        self, prefix: Prefix, uniforms_LB: Tensor, scales: list[float], filters: Filters
    ) -> None:
        """Take a batch, and draw its first token.

        Args:
            prefix: its conditions, and after them their null halves where any token is guided.
            uniforms_LB: a number for each draw.
            scales: guidance of each token.
            filters: of the draws.
        """
        ...

    def advance(self, token: int, *, guided: bool) -> None:
        """Draw token t, the one after the last; `guided`: the null halves run."""
        ...

    def result(self) -> Tensor:
        """Indices (B, L), a copy."""
        ...

    def all_finite(self) -> bool:
        """Whether all logits were; the host waits for it."""
        ...
