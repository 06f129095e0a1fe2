"""The features of all captions that a run can meet, written once in place of an encoder that runs.

A caption is a key by its text, so that captions that images share are there once. Beside those of
the training corpora there are the empty caption and those below the sample grids.
"""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gear_dist.config.schema import RunConfig
from gear_dist.data.captions import iterate_drawn_captions
from gear_dist.data.corpus import open_corpus
from gear_dist.data.first_batches import first_captions
from gear_dist.data.selection import select_samples
from gear_dist.errors import ConfigError, DataError, StorageError
from gear_dist.formatting import format_bytes
from gear_dist.models.text_encoders import load_text_encoder
from gear_dist.models.text_encoders.base import TextEncoder
from gear_dist.models.text_encoders.feature_cache import (
    FORMAT,
    SETTING,
    CacheRecord,
    CaptionPlan,
    begin_cache,
    plain_record,
    plan_captions,
    write_parts,
)
from gear_dist.models.text_encoders.fingerprint import take_fingerprint
from gear_dist.storage.paths import expand_user, local_path

NUM_GRID_CAPTIONS = 64
"""Captions of a sample grid."""


def cache_folder_of(config: RunConfig) -> Path:
    """`data.caption_features` as a path.

    Raises:
        ConfigError: it is empty, or no local folder.
    """
    if not config.data.caption_features:
        raise ConfigError(f"{SETTING} is empty: name the folder of the features")
    return expand_user(local_path(config.data.caption_features, SETTING))


def expected_record(config: RunConfig, encoder: TextEncoder) -> CacheRecord:
    """What a cache must say for a run, but for its counts.

    Raises:
        DataError: a corpus is not there.
    """
    return CacheRecord(
        format=FORMAT,
        encoder=plain_record(dataclasses.asdict(config.text_encoder)),
        fingerprint=plain_record(take_fingerprint(encoder)._asdict()),
        dtype=str(encoder.dtype).removeprefix("torch."),
        source=plain_record(_describe_source(config)),
        num_captions=0,
        num_rows=0,
        part_captions=(),
    )


def _describe_source(config: RunConfig) -> dict[str, Any]:
    """Which captions of which corpora; equal ones are the same captions."""
    data = config.data
    corpora = [open_corpus(address, data.endpoint) for address in data.train_addresses]
    shown = open_corpus(data.validation or data.train, data.endpoint)
    first = dataclasses.replace(data, captions="first")
    return {
        "corpora": select_samples(corpora, data).identities,
        "validation": select_samples([shown], first).identities,
        "captions": data.captions,
        "types of captions": [
            sorted(data.captions_of(number, len(corpora)).types) for number in range(len(corpora))
        ],
    }


class FeatureBuild:
    """A cache that is to be written: its size is known before anything is encoded."""

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        on_shard: Callable[[int, int], None] = lambda done, of: None,
    ) -> None:
        """Load the encoder, read the captions of the corpora and tokenize them.

        Args:
            config: of the run.
            device: that encodes.
            on_shard: told of the shards that are read, and of how many there are.

        Raises:
            ConfigError: the run reads no captions, or its encoder cannot be had.
            DataError: a corpus is not there, damaged, or without captions.
        """
        if not config.reads_captions:
            raise ConfigError(
                f"{SETTING}: generator.condition={config.generator.condition} trains on no "
                "captions: set generator.condition=text"
            )
        self.folder = cache_folder_of(config)
        self._encoder = load_text_encoder(
            config.text_encoder, width=config.generator.text_width, device=device
        )
        self._plan = self._read(config, on_shard)
        self.record = expected_record(config, self._encoder)._replace(
            num_captions=len(self._plan.captions),
            num_rows=self._plan.num_rows,
            part_captions=self._plan.part_captions,
        )

    def _read(self, config: RunConfig, on_shard: Callable[[int, int], None]) -> CaptionPlan:
        data = config.data
        corpora = [open_corpus(address, data.endpoint) for address in data.train_addresses]
        drawn = iterate_drawn_captions(corpora, select_samples(corpora, data), data, on_shard)
        unique = list(dict.fromkeys(drawn))
        if not unique:
            raise DataError(f"data.train={data.train}: has no captions that this run reads")
        grid = first_captions(data, NUM_GRID_CAPTIONS)
        return plan_captions(["", *grid, *unique], self._encoder)

    def check_space(self) -> None:
        """Refuse a disk that is too small for what is not there yet.

        Raises:
            StorageError: it is.
        """
        place = next(
            path for path in (self.folder, *self.folder.absolute().parents) if path.exists()
        )
        here = sum(path.stat().st_size for path in self.folder.glob("part-*.safetensors"))
        free, needed = shutil.disk_usage(place).free, self.record.num_bytes - here
        if needed > free:
            raise StorageError(
                f"{SETTING}={self.folder}: {format_bytes(needed)} are to be written, and there are "
                f"{format_bytes(free)}: name a folder on a larger disk, or train without"
            )

    def begin(self) -> bool:
        """Claim the folder; whether it is complete already. Raises as `begin_cache`."""
        return begin_cache(self.folder, self.record)

    def write(self, on_part: Callable[[int, bool], None]) -> None:
        """Encode what is not there yet; raises as `write_parts`."""
        write_parts(self.folder, self.record, self._plan.captions, self._encoder, on_part)
