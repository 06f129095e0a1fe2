"""What steps through real engines send, hold and keep, counted while they run."""

import dataclasses
from typing import Any, NamedTuple

import joint_step_case as case
import torch
from collective_tally import CollectiveTally
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gear_dist.config.models import TeacherConfig
from gear_dist.config.schema import RunConfig
from gear_dist.models.teachers.convnet import WIDTH
from gear_dist.planning.cost_model import saved_for_backward
from gear_dist.training.engine import TrainingEngine, prepare_deepspeed
from gear_dist.training.networks import Networks, build_modules
from gear_dist.training.steps import MicroBatch, train_micro_batch

WORKERS = 2
TEACHER = TeacherConfig(name="convnet")
CPU = torch.device("cpu")


def counted_config(zero_stage: int, precision: str, accumulation: int, **engine: Any) -> RunConfig:
    """The reference joint step by AdamW with the convnet teacher, each micro-batch as large."""
    config = case.reference_config(zero_stage, precision=precision, **engine)
    batch = config.engine.global_batch * accumulation
    changed = dataclasses.replace(
        config.engine, global_batch=batch, accumulation=accumulation, kernels="torch"
    )
    optimizer = dataclasses.replace(config.optimizer, name="adamw")
    return dataclasses.replace(config, engine=changed, optimizer=optimizer, teacher=TEACHER)


def _networks(config: RunConfig, world_size: int) -> Networks:
    prepare_deepspeed(CPU)
    torch.manual_seed(0)
    return Networks(
        "joint",
        build_modules(config, (WIDTH,)),
        {},
        engine=config.engine,
        optimizer=config.optimizer,
        world_size=world_size,
        device=CPU,
    )


def _batch() -> MicroBatch:
    batch = case.reference_batch()
    return batch._replace(features=[torch.randn(*batch.features[0].shape[:2], WIDTH)])


class Counted(NamedTuple):
    """One worker's counts of its second step."""

    micro_batches: list[dict[str, int]]
    """Payload bytes by collective, of each micro-batch's forwards and backwards."""
    step: dict[str, int]
    """Of the optimizers' step."""
    states: dict[str, dict[str, int]]
    """Bytes of parameters, optimizer and average that this worker holds, by network."""
    checkpoint_bytes: int
    """Tensors of a checkpoint that this worker has alone, or is the first of those that have it."""


def count_steps_each(rank: int, configs: list[RunConfig]) -> list[Counted]:
    """Worker: the counts of each configuration."""
    return [_count(rank, config) for config in configs]


def _count(rank: int, config: RunConfig) -> Counted:
    networks = _networks(config, WORKERS)
    share = case.split_batch(_batch(), rank, WORKERS)
    for _ in range(2):  # ZeRO-3 learns the order of modules in the first
        micro_batches: list[dict[str, int]] = []
        moves = CollectiveTally()
        for _ in range(config.engine.accumulation):
            with CollectiveTally() as passes:
                train_micro_batch(networks, share, config, 0, None)
            micro_batches.append(dict(passes.bytes))
            with moves:
                networks.step(1e-4)
        networks.update_averages()
    states = {name: _state_bytes(networks, name) for name in networks.engines}
    mine = [shard.values for shard in networks.shards() if rank == 0 or not shard.replicated]
    saved = _tensor_bytes(mine)
    networks.close()
    return Counted(micro_batches, dict(moves.bytes), states, saved)


def _state_bytes(networks: Networks, name: str) -> dict[str, int]:
    engine = networks.engines[name]
    held = [getattr(p, "ds_tensor", p) for p in engine.module.parameters()]
    masters = engine.optimizer_parameters() if engine.zero_stage > 0 else []
    moments = [engine.optimizer.state[p] for p in engine.optimizer_parameters()]
    averages = networks.averages[name].averages if name in networks.averages else []
    floats = [b for b in engine.module.buffers() if b.is_floating_point()]
    return {
        "parameters": sum(p.nbytes for p in held),
        "optimizer": _tensor_bytes([masters, moments]),
        "average": _tensor_bytes(averages[: len(averages) - len(floats)]),
    }


def _tensor_bytes(tree: Any) -> int:
    return sum(x.nbytes for x in tree_leaves(tree) if isinstance(x, Tensor))


def kept_activations_each(rank: int, configs: list[RunConfig]) -> list[dict[str, int]]:
    """Worker: bytes that the forward of each update keeps for its backward."""
    found = []
    for config in configs:
        networks = _networks(config, 1)
        weights = [t for e in networks.engines.values() for t in _weights(e.module)]
        kept: dict[str, int] = {}
        with saved_for_backward(weights) as saved:
            for name, engine in networks.engines.items():
                _note_before_backward(name, engine, kept, saved)
            train_micro_batch(networks, _batch(), config, 0, None)
        networks.close()
        found.append(kept)
    return found


def _weights(module: torch.nn.Module) -> list[Tensor]:
    partitions = [p.ds_tensor for p in module.parameters() if hasattr(p, "ds_tensor")]
    return [*module.parameters(), *partitions, *module.buffers()]


def _note_before_backward(
    name: str, engine: TrainingEngine, kept: dict[str, int], saved: Any
) -> None:
    backward = engine.backward

    def noting(loss: Tensor) -> None:
        kept[name] = saved.now
        backward(loss)

    engine.backward = noting  # type: ignore[method-assign]


def with_checkpointing(config: RunConfig, networks: dict[str, bool]) -> RunConfig:
    """The configuration with activation checkpointing in the networks that are marked so."""
    for name, on in networks.items():
        section = dataclasses.replace(getattr(config, name), activation_checkpointing=on)
        config = dataclasses.replace(config, **{name: section})
    return config
