"""What a generator is conditioned on, of the batches of a run."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch

from gear_dist.config.schema import RunConfig
from gear_dist.data.first_batches import first_captions
from gear_dist.data.loader import Batch
from gear_dist.inference.text_weights import check_same_encoder
from gear_dist.models.generator import ClassCondition, Condition
from gear_dist.models.text_encoders import load_text_encoder
from gear_dist.models.text_encoders.feature_cache import open_cache
from gear_dist.models.text_encoders.fingerprint import take_fingerprint
from gear_dist.training.caption_features import cache_folder_of, expected_record


class GridSamples(NamedTuple):
    """Conditions of a grid of samples."""

    condition: Condition
    captions: tuple[str, ...] | None
    """A line below each image; None: none."""


class Conditions(Protocol):
    """Makes the conditions of batches."""

    fingerprint: dict[str, Any] | None
    """A `Fingerprint` of the frozen encoder that is part of the model, as plain values; None: no
    encoder is."""

    def of(self, batch: Batch) -> Condition:
        """The condition of each of a batch's images, on the device."""
        ...

    def samples(self, count: int, num_classes: int) -> GridSamples:
        """What sample grids show; the same in every part of the run.

        Args:
            count: images at most.
            num_classes: classes of the corpus.

        Raises:
            DataError: the corpus that they are taken of is not there.
        """
        ...

    def check(self, stored: Any, where: str) -> None:
        """Compare the encoder with the one that weights were trained with, where that is known.

        Raises:
            ConfigError: it is another one.
        """
        ...


class ClassConditions:
    """Labels."""

    fingerprint: dict[str, Any] | None = None

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self._device = device

    def of(self, batch: Batch) -> Condition:
        """See `Conditions.of`."""
        return ClassCondition(batch.labels).to(self._device)

    def samples(self, count: int, num_classes: int) -> GridSamples:
        """See `Conditions.samples`: classes in turn."""
        return GridSamples(ClassCondition(grid_labels(num_classes, count)), None)

    def check(self, stored: Any, where: str) -> None:
        """See `Conditions.check`; there is none."""


class CaptionConditions:
    """Captions, read by the frozen text encoder in the dtype of its weights."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        """Load the encoder.

        Raises:
            ConfigError: it cannot be had, or does not fit.
        """
        self._data = config.data
        width = config.generator.text_width
        self.encoder = load_text_encoder(config.text_encoder, width=width, device=device)
        self.fingerprint: dict[str, Any] | None = take_fingerprint(self.encoder)._asdict()

    def of(self, batch: Batch) -> Condition:
        """See `Conditions.of`."""
        return self.encoder(batch.captions)

    def samples(self, count: int, num_classes: int) -> GridSamples:
        """See `Conditions.samples`: the first captions of the validation corpus, else training's.

        Args:
            num_classes: not used.
        """
        captions = first_captions(self._data, count)
        return GridSamples(self.encoder(captions), captions)

    def check(self, stored: Any, where: str) -> None:
        """See `Conditions.check`."""
        check_same_encoder(stored, self.fingerprint, where)


class CachedCaptionConditions:
    """Captions whose features were written by `gear-dist features`; no encoder stays in memory."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        """Load the encoder to compare it with the cache's, and let it go again.

        Raises:
            ConfigError: the cache is not there, or is that of another encoder or corpus.
            DataError: it is damaged.
        """
        self._device, self._data = device, config.data
        encoder = load_text_encoder(
            config.text_encoder, width=config.generator.text_width, device=device
        )
        record = expected_record(config, encoder)
        self.fingerprint: dict[str, Any] | None = record.fingerprint
        self._cache = open_cache(cache_folder_of(config), record)

    def of(self, batch: Batch) -> Condition:
        """See `Conditions.of`."""
        return self._cache.condition(batch.captions, self._device)

    def samples(self, count: int, num_classes: int) -> GridSamples:
        """See `CaptionConditions.samples`; the cache has the captions of a grid too."""
        captions = first_captions(self._data, count)
        return GridSamples(self._cache.condition(captions, self._device), captions)

    def check(self, stored: Any, where: str) -> None:
        """See `Conditions.check`."""
        check_same_encoder(stored, self.fingerprint, where)


CONDITIONS: dict[tuple[str, bool], Callable[[RunConfig, torch.device], Conditions]] = {
    ("class", False): ClassConditions,
    ("class", True): ClassConditions,
    ("text", False): CaptionConditions,
    ("text", True): CachedCaptionConditions,
}
"""By `generator.condition`, and whether there is `data.caption_features`."""


def grid_labels(num_classes: int, count: int) -> torch.Tensor:
    """Classes 0, 1, ... in turn, or spread evenly where there are more than images."""
    if num_classes <= count:
        return torch.arange(count) % num_classes
    return torch.arange(count) * num_classes // count


def load_conditions(config: RunConfig, device: torch.device) -> Conditions:
    """The conditions of a run, with what they need.

    Raises:
        ConfigError: the text encoder cannot be had, or does not fit the generator.
    """
    kind = config.generator.condition if config.stages.has_generator else "class"
    return CONDITIONS[kind, bool(config.data.caption_features)](config, device)
