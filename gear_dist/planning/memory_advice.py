"""What to do where a run does not fit into a device's memory: settings, and what each needs."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from gear_dist.config.schema import RunConfig
from gear_dist.config.training import EngineConfig
from gear_dist.errors import ConfigError
from gear_dist.formatting import format_bytes
from gear_dist.planning.hardware import make_rates
from gear_dist.planning.memory import ActivationBytes, NetworkStateBytes, estimate_memory
from gear_dist.planning.plan import CostPlan, plan_costs

CERTAIN = 1.25
"""An estimate this many times the free memory is refused; below that it is a warning, as what an
allocator keeps and libraries take is not in it."""
_CHECKPOINTED = "tokenizer.activation_checkpointing=true generator.activation_checkpointing=true"


class DeviceMemoryError(ConfigError):
    """A run that needs more memory than its device has: no attempt with the same settings fits."""


class Footprint(NamedTuple):
    """A run's traced steps, from which other settings of the engines follow without a new trace."""

    plan: CostPlan

    def needed_bytes(self, engine: EngineConfig | None = None, parts: int = 1) -> int:
        """The estimate of the stage that takes the most, of one worker.

        Args:
            engine: with other settings of ZeRO; None: the plan's own.
            parts: a micro-batch is this many times smaller than the plan's.
        """
        plan = self.plan
        own = plan.config.engine
        states = NetworkStateBytes(
            dataclasses.replace(engine or own, precision=own.precision),
            plan.config.optimizer,
            plan.world_size,
            own.precision,  # type: ignore[arg-type]  # a plan has chosen
        )
        return max(
            estimate_memory(
                states,
                stage.stage,
                plan.counts,
                {name: _part(kept, parts) for name, kept in stage.cost.activations.items()},
                on_cuda=True,
            ).total_bytes
            for stage in plan.stages
        )


def _part(kept: ActivationBytes, parts: int) -> ActivationBytes:
    return ActivationBytes(kept.kept // parts, kept.temporary // parts)


def trace_footprint(config: RunConfig, world_size: int) -> Footprint:
    """Trace the steps of a run on CUDA; takes half a minute for the published sizes.

    Raises:
        ConfigError: see `plan_costs`.
    """
    return Footprint(plan_costs(config, world_size=world_size, rates=make_rates({}), on_cuda=True))


def check_device_memory(
    config: RunConfig,
    world_size: int,
    free_bytes: int,
    total_bytes: int,
    say: Callable[[str], None],
) -> None:
    """Compare the estimate with a device's memory, before anything is allocated.

    Args:
        free_bytes: of a worker's device.
        total_bytes: of the same. What others hold now may be free in a moment: a dying worker's.
        say: takes a warning where it may not fit.

    Raises:
        DeviceMemoryError: it would not fit by far, were all of the memory free.
    """
    footprint = trace_footprint(config, world_size)
    needed = footprint.needed_bytes()
    if needed <= free_bytes:
        return
    text = (
        f"this run needs about {format_bytes(needed)} of memory on each device, of which "
        f"{format_bytes(free_bytes)} of {format_bytes(total_bytes)} are free: {advise(footprint)}"
    )
    if needed > CERTAIN * total_bytes:
        raise DeviceMemoryError(text)
    say(f"WARNING: {text}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had too little memory: torch's allocator, CUDA itself and its libraries each
    say it in their own way."""
    said = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in said)


def out_of_memory(config: RunConfig, world_size: int, reason: str) -> DeviceMemoryError:
    """The error of a run that a device's allocator has ended.

    Args:
        reason: the allocator's first line.
    """
    try:
        footprint = trace_footprint(config, world_size)
        needed = format_bytes(footprint.needed_bytes())
        text = f"by estimate it needs {needed}: {advise(footprint)}"
    except ConfigError:
        text = "raise engine.accumulation or engine.zero_stage"
    return DeviceMemoryError(f"out of device memory ({reason}); {text}")


def advise(footprint: Footprint) -> str:
    """Settings that need less, the least memory first, with what would be needed then."""
    needed = footprint.needed_bytes()
    found = sorted((size, words) for words, size in _alternatives(footprint))
    listed = ", ".join(
        f"{words} ({format_bytes(size)})" for size, words in found if size < 0.98 * needed
    )
    if not listed:
        return "use more devices, or smaller networks or images"
    return f"use {listed}; together they save more, see `gear-dist plan`"


def _alternatives(footprint: Footprint) -> Iterator[tuple[str, int]]:
    """Each setting that may save memory, at its next values, and what would be needed."""
    plan, engine = footprint.plan, footprint.plan.config.engine
    for parts in (2, 4, 8, 16, 32, 64):
        if plan.micro_batch % parts == 0:
            needed = footprint.needed_bytes(parts=parts)
            yield f"engine.accumulation={engine.accumulation * parts}", needed
    for stage in range(engine.zero_stage + 1, 4):
        if plan.world_size > 1:
            settings: dict[str, Any] = {"zero_stage": stage}
            needed = footprint.needed_bytes(dataclasses.replace(engine, **settings))
            yield f"engine.zero_stage={stage}", needed
    if engine.optimizer_offload == "none":
        other = dataclasses.replace(
            engine, zero_stage=max(engine.zero_stage, 1), optimizer_offload="cpu"
        )
        words = f"engine.zero_stage={other.zero_stage} engine.optimizer_offload=cpu"
        yield words, footprint.needed_bytes(other)
    config = plan.config
    if not (
        config.tokenizer.activation_checkpointing and config.generator.activation_checkpointing
    ):
        other_run = _checkpointed(config)
        yield _CHECKPOINTED, trace_footprint(other_run, plan.world_size).needed_bytes()


def _checkpointed(config: RunConfig) -> RunConfig:
    settings: dict[str, Any] = {"activation_checkpointing": True}
    return dataclasses.replace(
        config,
        tokenizer=dataclasses.replace(config.tokenizer, **settings),
        generator=dataclasses.replace(config.generator, **settings),
    )
