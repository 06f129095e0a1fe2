"""Words of the captions themselves as features: for small corpora, without any trained encoder.

Each word of a vocabulary is a vector of its own, at right angles to all others, so that the first
layer of the generator's caption projection is a table of word vectors, trained with the generator.
The vectors are fixed and written down by the vocabulary alone: nothing is drawn, and nothing more
has to be kept.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor

from gear_dist.config.text import MAX_WORDS, TextEncoderConfig
from gear_dist.errors import ConfigError
from gear_dist.models.text_encoders.base import CaptionFeatures, EncoderSize, TextEncoder
from gear_dist.storage.atomic import write_file
from gear_dist.storage.json_files import build_record, parse_json, to_json
from gear_dist.storage.paths import expand_user, local_path

FORMAT = 1
UNKNOWN, END = 0, 1
"""Tokens before those of the words: any other word, and the end of a caption."""
WIDTH_MULTIPLE = 8
_WORD = re.compile(r"\w+")


class Vocabulary(NamedTuple):
    """The file's contents."""

    format: int
    words: tuple[str, ...]


def split_words(caption: str) -> list[str]:
    """Words in lower case, without what is between them."""
    return _WORD.findall(caption.lower())


def count_words(captions: Iterable[str], size: int) -> Vocabulary:
    """The most frequent words, at most `size`, in alphabetical order."""
    counts = Counter(word for caption in captions for word in split_words(caption))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[:size]
    return Vocabulary(FORMAT, tuple(sorted(ranked)))


def write_vocabulary(path: Path, vocabulary: Vocabulary) -> None:
    """Write the file atomically."""
    write_file(path, (to_json(vocabulary._asdict(), indent=1) + "\n").encode())


def read_vocabulary(path: str) -> Vocabulary:
    """Read a file of `write_vocabulary`.

    Raises:
        ConfigError: it is missing, damaged, or another kind of file.
    """
    fix = "write one with `gear-dist words CORPUS --out FILE`"
    file = expand_user(local_path(path, "text_encoder.path"))
    try:
        vocabulary = build_record(Vocabulary, parse_json(file.read_bytes()))
    except OSError as error:
        raise ConfigError(f"text_encoder.path={path}: {error.strerror}; {fix}") from None
    except ValueError as error:
        raise ConfigError(f"text_encoder.path={path}: no vocabulary ({error}); {fix}") from None
    words = vocabulary.words
    unique = len(set(words)) == len(words) <= MAX_WORDS
    if vocabulary.format != FORMAT or not words or not unique:
        raise ConfigError(
            f"text_encoder.path={path}: no vocabulary of this version, or empty, with a word twice "
            f"or more than {MAX_WORDS:,} words; {fix}"
        )
    return vocabulary


def words_width(vocabulary: Vocabulary) -> int:
    """Width of the features: one for each word and for the tokens before them, rounded up."""
    return -(-(len(vocabulary.words) + END + 1) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE


class WordsTextEncoder(TextEncoder):
    """One row a word, and one for the end, which predicts the first image token."""

    def __init__(self, config: TextEncoderConfig, vocabulary: Vocabulary) -> None:
        super().__init__(config)
        self.vocabulary = vocabulary
        self._numbers = {word: i for i, word in enumerate(vocabulary.words, END + 1)}
        self.width = words_width(vocabulary)
        # No parameter tells the device.
        self.register_buffer("device_marker", torch.empty(0), persistent=False)
        self.freeze()

    @classmethod
    def load(cls, config: TextEncoderConfig, dtype: torch.dtype) -> Self:
        """The encoder of a vocabulary file; its features are fp32 in any case."""
        return cls(config, read_vocabulary(config.path))

    @classmethod
    def measure(cls, config: TextEncoderConfig) -> EncoderSize:
        """See `TextEncoder.measure`: there is nothing to hold or to multiply with."""
        return EncoderSize()

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        """See `TextEncoder.tokenize`; the end token is always there."""
        most = self.config.max_tokens - 1
        return [
            [*(self._numbers.get(word, UNKNOWN) for word in split_words(text)[:most]), END]
            for text in captions
        ]

    def encode(self, tokens: Sequence[Sequence[int]]) -> list[CaptionFeatures]:
        """See `TextEncoder.encode`; features have a mean square of one, as a normed model's."""
        return [CaptionFeatures(self._vectors(ids), False) for ids in tokens]

    def _vectors(self, ids: Sequence[int]) -> Tensor:
        device = self.get_buffer("device_marker").device
        numbers_T = torch.tensor(ids, device=device)
        return torch.nn.functional.one_hot(numbers_T, self.width) * self.width**0.5
