"""Settings of the frozen text encoder. No torch."""

from dataclasses import dataclass
from typing import Literal

from gear_dist.config.checks import MAX_LAYERS, require, require_at_least, require_at_most

MAX_TOKENS = 8192
MAX_WORDS = 8192
"""Most words of a vocabulary for name=words; each is a feature of its own."""


@dataclass(frozen=True)
class TextEncoderConfig:
    name: Literal["qwen3", "t5", "t5gemma", "clip", "words"] = "qwen3"
    """Family of the frozen encoder of captions, for generator.condition=text. All settings of \
this section are part of a model: saved with its weights, and compared when those are used."""
    path: str = "Qwen/Qwen3-1.7B"
    """A local folder or hub name of the family; words: the vocabulary that `gear-dist words` \
wrote."""
    revision: str = ""
    """Branch, tag or commit of the hub's repository; empty: its main branch."""
    layers: tuple[int, ...] = (0,)
    """Features are the tokens after this many blocks, before the final norm; 0: the encoder's \
output, after it. Several are joined to one wider feature. Not for words."""
    prompt: Literal["raw", "chat"] = "raw"
    """raw: a caption is tokenized as it is; chat: as a user's message in the tokenizer's chat \
template."""
    max_tokens: int = 300
    """Tokens of a caption that count; what is longer is cut."""
    padding: Literal["none", "right", "left"] = "none"
    """Where the training of the generator's weights put padding. Here captions have none. right: \
the last of max_tokens slots, padding where the caption is shorter, is where the first image token \
is predicted, as in the published weights; left: it is the caption's last token, in the last slot; \
none: likewise, at its own place, and an empty caption is one padding token."""
    batching: Literal["buckets", "alone"] = "buckets"
    """How captions go through the encoder: with others of similar lengths, which is faster, and \
moves the last bits of a caption's features with those beside it; or each alone, so that its \
features are always the same, bit for bit. Not for words, whose features always are."""

    def __post_init__(self) -> None:
        require_at_least("text_encoder", self, 1, "max_tokens")
        require_at_most("text_encoder", self, MAX_TOKENS, "max_tokens")
        layers = self.layers
        require(
            bool(layers) and len(set(layers)) == len(layers) and min(layers) >= 0,
            f"text_encoder.layers={list(layers)}: use numbers of blocks, each once, and 0 for the "
            "encoder's output",
        )
        ok = max(layers) <= MAX_LAYERS
        require(ok, f"text_encoder.layers={list(layers)}: use at most {MAX_LAYERS}")
