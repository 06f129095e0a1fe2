"""Collectives of one optimizer step, as DeepSpeed makes them at each ZeRO stage.

Counted in runs of two processes (tests/distributed/test_communication.py). W workers, P parameters
of a network.
"""

from typing import Literal, NamedTuple

from gear_dist.config.models import TokenizerConfig
from gear_dist.config.training import AlignmentConfig
from gear_dist.planning.fake_models import ModelStats
from gear_dist.planning.memory import NetworkStateBytes
from gear_dist.training.stages import TRAINED, StageName

CollectiveName = Literal["all_reduce", "all_gather", "reduce_scatter"]
_FP32 = 4
_DISCRIMINATOR_PASSES = 3
"""On the reconstruction in the tokenizer's update, on images and reconstruction in its own."""


class Collective(NamedTuple):
    """One kind of traffic of one network in a step."""

    network: str
    what: str
    collective: CollectiveName
    payload_bytes: int
    """The whole tensor that the workers share, each time, summed over the step."""
    times: int
    """How often a step sends it."""

    def sent_bytes(self, world_size: int) -> int:
        """What each worker sends in rings: an all-reduce is a reduce-scatter and an all-gather."""
        rounds = 2 if self.collective == "all_reduce" else 1
        return rounds * self.payload_bytes * (world_size - 1) // world_size


def count_communication(
    stage: StageName,
    stats: ModelStats,
    states: NetworkStateBytes,
    *,
    tokenizer: TokenizerConfig,
    alignment: AlignmentConfig,
) -> list[Collective]:
    """All collectives of a step that carry more than a few numbers. Empty for one worker.

    The all-gathers of ZeRO-3 are the most there can be, and what there is with
    `engine.keep_gathered_elements=0`: else DeepSpeed keeps some weights from forward to backward.
    """
    if states.world_size == 1:
        return []
    found = []
    for name in TRAINED[stage]:
        found += _engine(name, getattr(stats.counts, name), states)
    if "tokenizer" in TRAINED[stage]:
        frozen = {"discriminator": stats.counts.discriminator}
        if stage == "joint" and alignment.reaches_tokenizer:
            frozen["generator"] = stats.tapped
        found += _frozen_passes(frozen, states)
        found += _losses(stats, tokenizer.codebook_size, states.engine.accumulation)
    return found


def _engine(name: str, count: int, states: NetworkStateBytes) -> list[Collective]:
    """Gradients and weights. From stage 2 on DeepSpeed reduces every micro-batch's gradients."""
    zero, micro_batches = states.engine.zero_stage, states.engine.accumulation
    size = states.weight_bytes(name) * count
    every = "every micro-batch"
    if zero <= 1:
        found = [_times(Collective(name, "gradients", "all_reduce", size, 1), 1)]
    elif zero == 2:
        gradients = Collective(name, f"gradients, {every}", "all_reduce", size, 1)
        found = [_times(gradients, micro_batches)]
    else:
        gradients = Collective(name, f"gradients, {every}", "reduce_scatter", size, 1)
        # The critic's forward runs the discriminator twice.
        passes = 4 if name == "discriminator" else 2
        weights = Collective(name, f"weights, {every}", "all_gather", size, 1)
        found = [_times(gradients, micro_batches), _times(weights, passes * micro_batches)]
    if zero in (1, 2):
        found.append(Collective(name, "weights after the step", "all_gather", size, 1))
    return found


def _frozen_passes(counts: dict[str, int], states: NetworkStateBytes) -> list[Collective]:
    """Weights of other networks that the tokenizer's update runs through, gathered by ZeRO-3."""
    if states.engine.zero_stage != 3:
        return []
    found = []
    for name, count in counts.items():
        size = states.weight_bytes(name) * count
        weights = Collective(name, "weights, frozen pass", "all_gather", size, 1)
        found.append(_times(weights, 2 * states.engine.accumulation))
    return found


def _losses(stats: ModelStats, num_codes: int, micro_batches: int) -> list[Collective]:
    """Batch norm and the average entropy, of the tokenizer's update."""
    found = []
    if stats.norm_channels:
        statistics = _FP32 * sum(2 * channels + 1 for channels in stats.norm_channels)
        norms = Collective("discriminator", "batch norm", "all_reduce", statistics, 1)
        found.append(_times(norms, 2 * _DISCRIMINATOR_PASSES * micro_batches))
    entropy = _FP32 * num_codes
    average = Collective("tokenizer", "average code probabilities", "all_reduce", entropy, 1)
    found.append(_times(average, micro_batches))
    return found


def _times(one: Collective, times: int) -> Collective:
    return one._replace(payload_bytes=one.payload_bytes * times, times=times)
