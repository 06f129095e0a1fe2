"""Images token by token, with the keys and values of earlier positions kept.

Shapes: B images, K codes, S positions.
"""

from typing import Protocol

import torch
from torch import Tensor

from gear_dist.models.generator.conditioning import Condition
from gear_dist.models.generator.transformer import Generator


class Decoding(Protocol):
    """A batch of images that is being generated."""

    logits_BK: Tensor
    """fp32 logits of the next token of each image."""

    def advance(self, codes_B: Tensor) -> None:
        """Take the next token of each image, and compute the logits of the one after it."""
        ...


class ClassDecoding:
    """Images of a class-conditional generator; all have as many positions."""

    def __init__(self, generator: Generator, condition: Condition) -> None:
        """Run the condition's positions."""
        x = generator.cls_embedding(condition)
        self._generator = generator
        self._caches = generator.new_caches(len(x), like=x)
        self._filled = 0
        size = x.shape[1] + generator.num_tokens
        self._positions_S = torch.arange(size, device=x.device)
        self.logits_BK = self._run(x)

    def advance(self, codes_B: Tensor) -> None:
        """See `Decoding.advance`."""
        self.logits_BK = self._run(self._generator.tok_embeddings(codes_B[:, None]))

    def _run(self, x_BSD: Tensor) -> Tensor:
        start, self._filled = self._filled, self._filled + x_BSD.shape[1]
        positions_S = self._positions_S[start : self._filled]
        return self._generator.decode_step(x_BSD, positions_S, self._filled, self._caches)
