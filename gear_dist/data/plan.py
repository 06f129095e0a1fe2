"""The data plan of a run: lanes, order, position saved and restored (per-rank split: order.py)."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gear_dist.config.data import DataConfig
from gear_dist.data.corpus import Corpus
from gear_dist.data.order import MixtureComponent, Order, choose_lanes, split_lanes
from gear_dist.data.selection import Selection
from gear_dist.errors import ConfigError, DataError

KEEP_BYTES = 256 << 20
"""Corpora up to this size are kept in memory, and mixed as a whole."""


class DataRank(NamedTuple):
    """Rank, world size and batch sizes."""

    batch_size: int
    """Samples of a batch of this rank."""
    rank: int = 0
    world_size: int = 1
    accumulation: int = 1
    """Batches of this rank that make up its part of a global batch."""

    @property
    def global_batch(self) -> int:
        """Samples of an optimizer step: of all ranks and all accumulated batches."""
        return self.batch_size * self.world_size * self.accumulation


class Position(NamedTuple):
    """The next batch of a rank."""

    step: int
    """Global batches done."""
    micro: int
    """Batches done of those that the rank accumulates into the next global one."""


class DataPlan:
    """The order of the corpora under the given settings. Independent of the rank."""

    def __init__(
        self,
        corpora: Sequence[Corpus],
        data: DataConfig,
        data_rank: DataRank,
        seed: int,
        selection: Selection,
    ) -> None:
        """Choose the lanes of a run that starts.

        Args:
            corpora: in the order of the settings.
            data: settings.
            data_rank: world size and batch sizes.
            seed: of the order.
            selection: which samples of the corpora are taken; the order knows no others.

        Raises:
            ConfigError: weights or lanes that do not fit.
        """
        self._corpora = tuple(corpora)
        self._data = data
        self._data_rank = data_rank
        self._seed = seed
        shards = [info for corpus in corpora for info in corpus.manifest.shards]
        self._selection = selection
        self.counts = selection.counts
        """(num_shards,) samples that are taken of each shard, over all corpora."""
        self._bytes = sum(info.bytes for info in shards)
        self.keep = self._bytes <= min(KEEP_BYTES, data.shard_memory_bytes)
        """Whether everything is kept in memory."""
        lanes = self._first_lanes()
        self.order = self._make_order(lanes, self._first_window(sum(lanes)))

    @property
    def _fitting(self) -> int:
        """Shards that half the memory of all workers holds; the other half is for the next."""
        memory_bytes = self._data_rank.world_size * self._data.shard_memory_bytes
        return int(memory_bytes / 2 / max(self._bytes / max(len(self.counts), 1), 1))

    def _first_lanes(self) -> tuple[int, ...]:
        """Lanes of each component, for a run that starts."""
        weights = _weights(self._data, len(self._corpora))
        global_batch, lanes = self._data_rank.global_batch, self._data.lanes
        if lanes and (global_batch % lanes or lanes < len(weights)):
            raise ConfigError(
                f"data.lanes={lanes}: use a divisor of engine.global_batch={global_batch}, at "
                f"least {len(weights)}, or 0"
            )
        if lanes:
            return split_lanes(lanes, weights)
        if self.keep:
            found = choose_lanes(global_batch, 1, weights=weights)
        else:
            found = choose_lanes(
                global_batch,
                self._data_rank.world_size,
                at_least=self._data.shuffle_buffer_shards,
                at_most=self._fitting,
                weights=weights,
            )
        if not found:
            raise ConfigError(
                f"engine.global_batch={global_batch} is too small for {len(weights)} corpora: "
                "raise it"
            )
        return found

    def _first_window(self, lanes: int) -> int:
        """Shards of each lane that are mixed with one another, for a run that starts; 0: all."""
        wanted = math.ceil(self._data.shuffle_buffer_shards / lanes)
        return 0 if self.keep else max(1, min(wanted, self._fitting // lanes))

    def _make_order(self, lanes: Sequence[int], window_shards: int) -> Order:
        """The order, with one component per corpus, or one for all where there are no weights."""
        sizes = [len(corpus.manifest.shards) for corpus in self._corpora]
        sizes = sizes if len(lanes) > 1 else [sum(sizes)]
        ends = np.cumsum(sizes).tolist()
        components = [
            MixtureComponent(self.counts[end - size : end], end - size, part_lanes)
            for size, end, part_lanes in zip(sizes, ends, lanes, strict=True)
        ]
        return Order(
            components,
            global_batch=self._data_rank.global_batch,
            seed=self._seed,
            window_shards=window_shards,
            tail=self._data.tail,
        )

    @property
    def address(self) -> str:
        """Of the first corpus, for messages."""
        return self._corpora[0].storage.address

    def describe(self) -> dict[str, Any]:
        """What is read and in which order, for the record of a run."""
        lanes = [component.lanes for component in self.order.components]
        return {
            "corpora": [corpus.storage.address for corpus in self._corpora],
            "global_batch": self.order.global_batch,
            "lanes": lanes,
            "window_shards": self.order.window_shards,
            "shares": [count / self.order.lanes for count in lanes],
            "epochs": [epoch_count._asdict() for epoch_count in self.order.epoch_counts],
            "tail": self._data.tail,
            "decoding": self._data.decoding,
            "background": self._data.background,
            "taken": int(self.counts.sum()),
            "licenses": self._selection.licenses(),
        }

    def check_global_batch(self) -> None:
        """Raise DataError where a corpus does not fill its part of one global batch."""
        for epoch_count, component in zip(
            self.order.epoch_counts, self.order.components, strict=True
        ):
            if epoch_count.steps == 0:
                raise DataError(
                    f"{self.address}: has {epoch_count.samples} images, fewer than its "
                    f"{component.lanes * self.order.per_lane} samples per global batch: lower "
                    "engine.global_batch, add images, or set data.tail=repeat"
                )

    def state_dict(self, position: Position) -> dict[str, Any]:
        """A position with everything that gives it its meaning, as JSON.

        It holds for any number of ranks, with the lanes and windows of the run's start, unless it
        is inside a global batch (`micro` is not 0).
        """
        return {
            **position._asdict(),
            "epoch": position.step // max(self.order.epoch_counts[0].steps, 1),
            "lanes": [component.lanes for component in self.order.components],
            "window_shards": self.order.window_shards,
            "ranks": [self._data_rank.world_size, self._data_rank.accumulation],
            **self._identity(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> Position:
        """Take up the lanes and windows of a saved position.

        Raises:
            DataError: another corpus or another kind of state.
            ConfigError: a setting has changed without which the position means nothing.
        """
        if not state.keys() >= self.state_dict(Position(0, 0)).keys():
            raise DataError(
                f"{self.address}: the checkpoint's data position is of another version of "
                "gear-dist: resume with that version, or start a new run from its weights "
                "(stages.init_from)"
            )
        for name, value in self._identity().items():
            if state[name] != value:
                _refuse_change(self.address, name, state[name], value)
        ranks = [self._data_rank.world_size, self._data_rank.accumulation]
        if state["micro"] and state["ranks"] != ranks:
            raise ConfigError(
                f"{self.address}: the checkpoint's data position is inside a global batch: resume "
                f"with run.workers={state['ranks'][0]} engine.accumulation={state['ranks'][1]}"
            )
        if self._data.lanes and self._data.lanes != sum(state["lanes"]):
            _refuse_change(self.address, "data.lanes", sum(state["lanes"]), self._data.lanes)
        self.order = self._make_order(state["lanes"], state["window_shards"])
        return Position(int(state["step"]), int(state["micro"]))

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a position to mean the same samples."""
        return {
            "corpora": self._selection.identities,
            "engine.global_batch": self._data_rank.global_batch,
            "run.seed": self._seed,
            "data.tail": self._data.tail,
            "data.shuffle_buffer_shards": self._data.shuffle_buffer_shards,
            "data.mixture_weights": list(self._data.mixture_weights),
        }


def _refuse_change(address: str, name: str, old: Any, new: Any) -> None:
    if name == "corpora":
        raise DataError(
            f"{address}: is not the corpus that the run started with, or its filters take other "
            "samples: restore data.train, data.mixture and the filters, or start a new run"
        )
    raise ConfigError(
        f"{name}={new}: the run was started with {old}, and its position in the data is only valid "
        "with that value: restore it, or start a new run"
    )


def _weights(data: DataConfig, num_corpora: int) -> tuple[float, ...]:
    """A weight for each component of the order; one component where corpora are simply joined."""
    weights = data.mixture_weights
    if num_corpora == 1 or not weights:
        return (1.0,)
    if len(weights) != num_corpora:
        raise ConfigError(
            f"data.mixture_weights has {len(weights)} entries for {num_corpora} corpora "
            "(data.train and those of data.mixture): give one each, or none"
        )
    return weights
