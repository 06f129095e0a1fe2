"""What a run will cost: memory, arithmetic, communication, time, checkpoints, data."""

import dataclasses
from typing import NamedTuple

from gear_dist.config.schema import RunConfig
from gear_dist.errors import ConfigError
from gear_dist.planning.communication import Collective, count_communication
from gear_dist.planning.cost_model import OperationCost
from gear_dist.planning.fake_models import ModelStats, count_networks
from gear_dist.planning.hardware import Rates
from gear_dist.planning.memory import (
    MemoryEstimate,
    NetworkStateBytes,
    ParameterCounts,
    Precision,
    estimate_memory,
)
from gear_dist.planning.trace_step import StageCost, count_stage
from gear_dist.training.stages import AVERAGED, TRAINED, StageName, plan_stages

IMAGE_BYTES = 115_440
"""ImageNet's training archive, 147,897,477,120 bytes, over 1,281,167 images."""
_FP32 = 4
# AdamW reads a weight, its gradient and two moments, and writes three of them; sgd leaves out the
# moments. Clipping reads the gradient once more and scales it; the average reads and writes.
_OPTIMIZER_PASSES = {"adamw": 7, "sgd": 3}
_CLIP_PASSES = 3
_AVERAGE_PASSES = 3


class StepTime(NamedTuple):
    """Seconds of one optimizer step."""

    compute_s: float
    """Forwards and backwards of all micro-batches."""
    optimizer_s: float
    communication_s: float

    @property
    def apart_s(self) -> float:
        """Nothing overlaps."""
        return self.compute_s + self.optimizer_s + self.communication_s

    @property
    def overlapped_s(self) -> float:
        """All communication hides behind computing, as far as it fits."""
        return max(self.compute_s + self.optimizer_s, self.communication_s)


class CheckpointPlan(NamedTuple):
    """One checkpoint of all workers."""

    bytes: int
    seconds: float
    """Written by all nodes at their storage rate."""
    published_bytes: int
    """The weights files for users beside it, written by one worker."""


class LoadingPlan(NamedTuple):
    """What the loaders must deliver where nothing else holds up the run."""

    images_per_s_node: float
    bytes_per_s_node: float


class StagePlan(NamedTuple):
    """One stage of the run."""

    stage: StageName
    steps: int
    memory: MemoryEstimate
    cost: StageCost
    """Of one micro-batch on one worker."""
    communication: list[Collective]
    time: StepTime
    images_per_s: float
    """Of all workers, without overlap."""
    checkpoint: CheckpointPlan
    data: LoadingPlan


class CostPlan(NamedTuple):
    """A whole run."""

    config: RunConfig
    counts: ParameterCounts
    world_size: int
    num_nodes: int
    micro_batch: int
    rates: Rates
    stages: list[StagePlan]


def plan_costs(
    config: RunConfig,
    *,
    world_size: int,
    rates: Rates,
    on_cuda: bool,
    image_bytes: int = IMAGE_BYTES,
) -> CostPlan:
    """Plan every stage of a configuration; loads and allocates nothing.

    Args:
        config: the run.
        world_size: workers, one per GPU.
        rates: of the machine.
        on_cuda: whether tensors behave as on CUDA; decides what `engine.precision=auto` means.
        image_bytes: mean size of an encoded image.

    Raises:
        ConfigError: no stage has steps, the batch does not divide, an unknown teacher.
    """
    if config.stages.total_steps == 0:
        raise ConfigError("stages: all have 0 steps; set stages.joint.steps or another")
    precision: Precision = "bf16" if on_cuda else "fp32"
    if config.engine.precision != "auto":
        precision = config.engine.precision
    engine = dataclasses.replace(config.engine, precision=precision)
    config = dataclasses.replace(config, engine=engine)
    planner = _Planner(
        config=config,
        stats=count_networks(config),
        states=NetworkStateBytes(engine, config.optimizer, world_size, precision),
        micro_batch=config.engine.micro_batch(world_size),
        num_nodes=-(-world_size // rates.gpus_per_node),
        rates=rates,
        image_bytes=image_bytes,
        on_cuda=on_cuda,
    )
    return CostPlan(
        config=config,
        counts=planner.stats.counts,
        world_size=world_size,
        num_nodes=planner.num_nodes,
        micro_batch=planner.micro_batch,
        rates=rates,
        stages=[planner.stage(s.name, s.steps) for s in plan_stages(config.stages)],
    )


class _Planner(NamedTuple):
    config: RunConfig
    stats: ModelStats
    states: NetworkStateBytes
    micro_batch: int
    num_nodes: int
    rates: Rates
    image_bytes: int
    on_cuda: bool

    def stage(self, name: StageName, steps: int) -> StagePlan:
        config = self.config
        cost = count_stage(
            name, config, images=self.micro_batch, on_cuda=self.on_cuda, rates=self.rates
        )
        communication = count_communication(
            name,
            self.stats,
            self.states,
            tokenizer=config.tokenizer,
            alignment=config.alignment,
        )
        time = self._time(name, cost.total, communication)
        images_per_s = config.engine.global_batch / time.apart_s
        per_node = images_per_s / self.num_nodes
        return StagePlan(
            stage=name,
            steps=steps,
            memory=estimate_memory(
                self.states, name, self.stats.counts, cost.activations, on_cuda=self.on_cuda
            ),
            cost=cost,
            communication=communication,
            time=time,
            images_per_s=images_per_s,
            checkpoint=self._checkpoint(name),
            data=LoadingPlan(per_node, per_node * self.image_bytes),
        )

    def _time(
        self, stage: StageName, cost: OperationCost, communication: list[Collective]
    ) -> StepTime:
        world_size = self.states.world_size
        sent = sum(item.sent_bytes(world_size) for item in communication)
        return StepTime(
            compute_s=cost.seconds * self.config.engine.accumulation,
            optimizer_s=sum(map(self._optimizer_seconds, TRAINED[stage])),
            communication_s=sent / self.rates.link(world_size),
        )

    def _optimizer_seconds(self, network: str) -> float:
        """Memory traffic of clipping, optimizer and average over this worker's share.

        An offloaded optimizer is as slow as its link: gradients go over, and weights come back.
        """
        config = self.config
        sharded = config.engine.zero_stage > 0
        count = getattr(self.stats.counts, network) / (self.states.world_size if sharded else 1)
        if config.engine.optimizer_offload != "none":
            return count * (_FP32 + self.states.weight_bytes(network)) / self.rates.host
        passes = _OPTIMIZER_PASSES[config.optimizer.name]
        passes += _CLIP_PASSES * (config.optimizer.clip_norm > 0)
        passes += _AVERAGE_PASSES * (network in AVERAGED)
        return count * passes * _FP32 / self.rates.memory

    def _checkpoint(self, stage: StageName) -> CheckpointPlan:
        """Masters, moments and averages in fp32, buffers, a frozen tokenizer; each once."""
        sizes = dict(zip(ParameterCounts._fields, self.stats.counts, strict=True))
        moments = 2 if self.config.optimizer.name == "adamw" else 0
        total = published = 0
        for network in TRAINED[stage]:
            averaged = network in AVERAGED
            total += _FP32 * sizes[network] * (1 + moments + averaged)
            total += self.stats.buffer_bytes[network] * (1 + averaged)
            published += _FP32 * sizes[network]
        if "tokenizer" not in TRAINED[stage]:
            total += _FP32 * sizes["tokenizer"]
            published += _FP32 * sizes["tokenizer"]
        return CheckpointPlan(total, total / (self.rates.storage * self.num_nodes), published)
