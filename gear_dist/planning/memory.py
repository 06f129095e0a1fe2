"""Memory estimate of one worker in one stage, from parameter counts, configuration and activations.

Weights, gradients, optimizer states and averages follow from the ZeRO stage; what a step keeps is
counted (gear_dist.planning). No torch.
"""

from typing import Literal, NamedTuple

from gear_dist.config.training import EngineConfig, OptimizerConfig
from gear_dist.formatting import format_bytes
from gear_dist.training.deepspeed_config import bucket_elements
from gear_dist.training.stages import AVERAGED, TRAINED, StageName

_FP32 = 4
_BF16 = 2
_MOMENTS = {"adamw": 2, "sgd": 0}
Precision = Literal["fp32", "bf16"]


class ParameterCounts(NamedTuple):
    """Parameters of each network; `generator` counts its projectors too."""

    tokenizer: int
    discriminator: int
    generator: int
    teacher: int = 0
    lpips: int = 0
    text_encoder: int = 0
    """0: there is none, its features are read, or its sizes are not known."""


class ActivationBytes(NamedTuple):
    """Memory of one update beyond weights and gradients."""

    kept: int
    """What the forward keeps for the backward."""
    temporary: int
    """What is alive beside that at the worst moment of the update."""


class MemoryRow(NamedTuple):
    """Bytes that one network takes on one worker, `host` in the memory of its machine."""

    part: str
    parameters: int
    gradients: int = 0
    optimizer: int = 0
    average: int = 0
    activations: int = 0
    temporary: int = 0
    host: int = 0

    @property
    def fixed(self) -> int:
        """What stays from step to step."""
        return self.parameters + self.gradients + self.optimizer + self.average


class MemoryEstimate(NamedTuple):
    """Memory of one worker; `total_bytes` counts the largest update only, as the updates of a
    step follow one another."""

    rows: tuple[MemoryRow, ...]
    buckets_bytes: int
    gathered_bytes: int
    """Whole weights that ZeRO-3 holds at a time."""
    total_bytes: int
    host_bytes: int
    world_size: int
    micro_batch: int
    zero_stage: int
    precision: str


def estimate_memory(
    states: "NetworkStateBytes",
    stage: StageName,
    counts: ParameterCounts,
    activations: dict[str, ActivationBytes],
    *,
    on_cuda: bool,
) -> MemoryEstimate:
    """Estimate the memory of one worker in a stage.

    Args:
        states: what ZeRO shards, of which worker.
        stage: whose networks are in memory.
        counts: parameters of each network.
        activations: of a micro-batch, by the network that the update trains.
        on_cuda: decides the default size of communication buckets.

    Raises:
        ConfigError: the global batch does not divide evenly.
    """
    rows = []
    for name in TRAINED[stage]:
        kept = activations.get(name, ActivationBytes(0, 0))
        row = states.row(name, getattr(counts, name))
        rows.append(row._replace(activations=kept.kept, temporary=kept.temporary))
    if "tokenizer" not in TRAINED[stage]:
        rows.append(MemoryRow("tokenizer (frozen)", _FP32 * counts.tokenizer))
    elif counts.lpips:
        rows.append(MemoryRow("LPIPS (frozen)", _FP32 * counts.lpips))
    if "generator" in TRAINED[stage] and counts.teacher:
        rows.append(MemoryRow("teacher (frozen)", _FP32 * counts.teacher))
    if counts.text_encoder:
        size = _BF16 if on_cuda else _FP32
        rows.append(MemoryRow("text encoder (frozen)", size * counts.text_encoder))
    sizes = {name: getattr(counts, name) for name in TRAINED[stage]}
    buckets = _bucket_bytes(states.engine, list(sizes.values()), on_cuda)
    gathered = max(states.gathered(name, count) for name, count in sizes.items())
    largest = max(row.activations + row.temporary for row in rows)
    return MemoryEstimate(
        rows=tuple(rows),
        buckets_bytes=buckets,
        gathered_bytes=gathered,
        total_bytes=sum(row.fixed for row in rows) + buckets + gathered + largest,
        host_bytes=sum(row.host for row in rows),
        world_size=states.world_size,
        micro_batch=states.engine.micro_batch(states.world_size),
        zero_stage=states.engine.zero_stage,
        precision=states.precision,
    )


class NetworkStateBytes(NamedTuple):
    """Bytes of a network's states on one worker, by what ZeRO shards."""

    engine: EngineConfig
    optimizer: OptimizerConfig
    world_size: int
    """Workers that share what ZeRO shards."""
    precision: Precision
    """Of the generator's engine, `engine.precision` resolved; the tokenizer and discriminator keep
    fp32 weights."""

    def weight_bytes(self, name: str) -> int:
        """Of one weight as the network computes with it: only the generator's can be bf16, and
        only beside sharded fp32 ones."""
        mixed = name == "generator" and self.precision == "bf16"
        return _BF16 if mixed and self.engine.zero_stage >= 1 else _FP32

    def row(self, name: str, count: int) -> MemoryRow:
        """All states of a network that is trained."""
        stage = self.engine.zero_stage
        gradients = self._share(_FP32 * count, stage >= 2)
        # From stage 1 on DeepSpeed keeps a sharded fp32 copy of the weights, in fp32 runs too.
        per_parameter = _FP32 * (_MOMENTS[self.optimizer.name] + (stage >= 1))
        optimizer = self._share(per_parameter * count, stage >= 1)
        average = self._share(_FP32 * count, stage >= 1) if name in AVERAGED else 0
        row = MemoryRow(
            part=name,
            parameters=self._share(self.weight_bytes(name) * count, stage >= 3),
            gradients=gradients,
            optimizer=optimizer,
            average=average,
        )
        if self.engine.optimizer_offload == "none":
            return row
        partition = self._share(_FP32 * count, True)
        return row._replace(optimizer=0, average=0, host=optimizer + average + partition)

    def gathered(self, name: str, count: int) -> int:
        """Whole weights that ZeRO-3 keeps from forward to backward."""
        if self.engine.zero_stage < 3:
            return 0
        return self.weight_bytes(name) * min(count, self.engine.keep_gathered_elements)

    def _share(self, size: int, sharded: bool) -> int:
        return -(-size // self.world_size) if sharded else size


def _bucket_bytes(engine: EngineConfig, counts: list[int], on_cuda: bool) -> int:
    if engine.zero_stage == 0:
        return 0
    return sum(2 * _FP32 * bucket_elements(engine, count, on_cuda) for count in counts)


def format_estimate(estimate: MemoryEstimate) -> str:
    """The estimate as a table of text, with what is rough about it."""
    head = ("", "parameters", "gradients", "optimizer", "EMA", "activations", "temporary", "host")
    lines = [head, *((row[0], *map(format_bytes, row[1:])) for row in estimate.rows)]
    width = max(len(line[0]) for line in lines)
    table = [line[0].ljust(width) + "".join(f"{cell:>12}" for cell in line[1:]) for line in lines]
    workers = f"{estimate.world_size} worker{'s' if estimate.world_size > 1 else ''}"
    gathered = f", gathered weights: {format_bytes(estimate.gathered_bytes)}"
    return "\n".join(
        [
            f"Memory of each of {workers}: about {format_bytes(estimate.total_bytes)} "
            f"(ZeRO {estimate.zero_stage}, {estimate.precision}, "
            f"{estimate.micro_batch} images a micro-batch)",
            *table,
            f"communication buckets: {format_bytes(estimate.buckets_bytes)}"
            f"{gathered if estimate.gathered_bytes else ''}. The updates follow one another, so "
            "only the largest activations count. Rough: the allocator's gaps, workspaces of "
            "libraries and the CUDA context come on top.",
        ]
    )
