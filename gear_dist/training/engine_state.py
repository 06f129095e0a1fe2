"""An engine's state as shards of a checkpoint: where DeepSpeed keeps what, at each ZeRO stage."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gear_dist.checkpoints.shards import TensorShard, replicated
from gear_dist.distributed import collectives
from gear_dist.training.engine import TrainingEngine


class Fragment(NamedTuple):
    """Elements [start, start + length) of a parameter, in one of this rank's flat masters."""

    name: str
    flat: int
    """Index into `TrainingEngine.optimizer_parameters`."""
    flat_start: int
    start: int
    length: int


def find_fragments(engine: TrainingEngine) -> Iterator[Fragment]:
    """Where each parameter of an engine lies among this rank's flat masters.

    At ZeRO stage 0 whole, on every rank; at 1 and 2 a rank has neighbouring parameters, the first
    and last perhaps in part; at 3 an equal part of each, the last filled up.
    """
    named: list[tuple[str, Any]] = list(engine.module.named_parameters())
    if engine.zero_stage == 0:
        for i, (name, parameter) in enumerate(named):
            yield Fragment(name, i, 0, 0, parameter.numel())
    elif engine.zero_stage < 3:
        for name, parameter in named:
            mapping = parameter._hp_mapping
            if mapping is not None:
                inside, flat = mapping.lp_fragment_address, mapping.hp_fragment_address
                group = mapping.param_group_index
                yield Fragment(name, group, flat.start, inside.start, inside.numel)
    else:
        wrapper = engine.zero_optimizer
        for name, parameter in named:
            group, offset, _ = wrapper.grad_position[wrapper.get_param_id(parameter)]
            start = parameter.ds_tensor.ds_numel * collectives.rank()
            length = min(parameter.ds_tensor.ds_numel, parameter.ds_numel - start)
            if length > 0:
                yield Fragment(name, group, offset, start, length)


def optimizer_metadata(engine: TrainingEngine) -> dict[str, Any]:
    """What an engine's optimizer keeps: names of tensors like their master, and plain numbers.

    The numbers are equal for all masters: all have made every step.
    """
    states = [engine.optimizer.state.get(flat, {}) for flat in engine.optimizer_parameters()]
    numbers: dict[str, float] = {}
    tensors: list[str] = []
    for key, value in (states[0] if states else {}).items():
        if isinstance(value, Tensor) and value.dim() > 0:
            tensors.append(key)
            continue
        found = {float(state[key]) for state in states}
        assert len(found) == 1, f"{engine.name}: {key} differs between parameters: {found}"
        numbers[key] = found.pop()
    return {"tensors": tensors, "numbers": numbers}


def load_optimizer_metadata(engine: TrainingEngine, metadata: dict[str, Any]) -> None:
    """Give an optimizer the states that `optimizer_metadata` names, their tensors zero."""
    for flat in engine.optimizer_parameters():
        state = {key: torch.zeros_like(flat) for key in metadata["tensors"]}
        for key, value in metadata["numbers"].items():
            state[key] = torch.tensor(value, dtype=torch.float32, device=flat.device)
        engine.optimizer.state[flat] = state


def engine_shards(engine: TrainingEngine, averages: list[Tensor] | None) -> Iterator[TensorShard]:
    """This rank's share of an engine's state, as views: masters, averages, optimizer, buffers.

    Keys are NETWORK.KIND.NAME, with kinds `weights`, `average`, the optimizer's own and `buffers`.

    Args:
        averages: as `TrainingEngine.masters` has it.
    """
    flats = engine.optimizer_parameters()
    states = engine.optimizer.state
    kinds = {"weights": flats}
    kinds |= {
        key: [states[flat][key] for flat in flats] for key in optimizer_metadata(engine)["tensors"]
    }
    if averages is not None:
        kinds["average"] = averages[: len(flats)]
    is_replicated = engine.zero_stage == 0
    for stretch in find_fragments(engine):
        for kind, tensors in kinds.items():
            tensor = tensors[stretch.flat].detach()
            values = tensor.reshape(-1)[stretch.flat_start : stretch.flat_start + stretch.length]
            key = f"{engine.name}.{kind}.{stretch.name}"
            # Channels-last weights, which only stage 0 has, on CUDA.
            source = None if tensor.is_contiguous() else tensor
            yield TensorShard(key, stretch.start, values, is_replicated, source)
    buffers = dict(engine.module.named_buffers())
    for name, buffer in buffers.items():
        yield replicated(f"{engine.name}.buffers.{name}", buffer)
    averaged = [name for name, buffer in buffers.items() if buffer.is_floating_point()]
    for name, average in zip(averaged, (averages or [])[len(flats) :], strict=False):
        yield replicated(f"{engine.name}.average.{name}", average)
