"""What every text encoder is: frozen, from captions to the features of their tokens.

Shapes: B captions, T tokens of a caption, M tokens of all captions, F feature width.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from gear_dist.config.text import TextEncoderConfig
from gear_dist.errors import ConfigError
from gear_dist.models.generator.conditioning import TextCondition


class CaptionFeatures(NamedTuple):
    """The features of one caption."""

    features_TF: Tensor
    hidden: bool
    """Whether the last row is a padding slot (see `TextCondition.hidden`)."""


class EncoderSize(NamedTuple):
    """What an encoder takes, for plans."""

    parameters: int = 0
    multiplied: int = 0
    """Weights that every token is multiplied with; not the table of tokens."""
    blocks: int = 0
    """Blocks that run."""
    attention_width: int = 0
    """Of all heads together."""


class TextEncoder(nn.Module):
    """Frozen: always in evaluation mode, no parameter requires a gradient.

    Subclasses set `width`, define `load`, `tokenize` and `encode`, and call `freeze` at the end of
    their constructor.
    """

    width: int
    """Feature width F."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self._null: CaptionFeatures | None = None

    @classmethod
    def load(cls, config: TextEncoderConfig, dtype: torch.dtype) -> Self:
        """The encoder with its weights in a dtype, on the CPU; see `load_text_encoder`."""
        raise NotImplementedError

    @classmethod
    def measure(cls, config: TextEncoderConfig) -> EncoderSize:
        """Sizes without weights; see `measure_text_encoder`. Made in `fake_tensors`."""
        raise NotImplementedError

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        """Token numbers of each caption, at most `text_encoder.max_tokens`; may be none."""
        raise NotImplementedError

    def encode(self, tokens: Sequence[Sequence[int]]) -> list[CaptionFeatures]:
        """Features of tokenized captions, at least one row each. Without a gradient."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """Of the features."""
        return torch.float32

    def num_rows(self, tokens: Sequence[int]) -> int:
        """Rows of features that `encode` makes of a tokenized caption."""
        return max(1, len(tokens))

    def freeze(self) -> None:
        """Take all parameters out of training."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever mode a parent module switches to."""
        return super().train(False)

    def check_width(self, width: int) -> None:
        """Raise ConfigError where a generator takes features of another width."""
        if width != self.width:
            raise ConfigError(
                f"generator.text_width={width}, and text_encoder.path={self.config.path} with "
                f"text_encoder.layers={list(self.config.layers)} gives features of width "
                f"{self.width}: set generator.text_width={self.width}, or for trained weights the "
                "text_encoder that they were trained with"
            )

    @torch.no_grad()
    def forward(self, captions: Sequence[str]) -> TextCondition:
        """The condition of images of these captions; a caption that is there twice is read once."""
        different = list(dict.fromkeys(captions))
        tokens = self.tokenize(different)
        found = dict(zip(different, self.encode(tokens), strict=True))
        null = self.null()
        rows = [found[caption] for caption in captions]
        return TextCondition(
            torch.cat([row.features_TF for row in rows]),
            tuple(len(row.features_TF) for row in rows),
            tuple(row.hidden for row in rows),
            null.features_TF,
            null.hidden,
        )

    @torch.no_grad()
    def null(self) -> CaptionFeatures:
        """Features of the empty caption; computed once."""
        if self._null is None:
            (self._null,) = self.encode(self.tokenize([""]))
        return self._null
