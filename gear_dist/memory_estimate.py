"""Memory of a worker before anything is built, from parameter counts and the configuration.

Weights, gradients, optimizer states and averages follow from the ZeRO stage; activations are a
rough formula, right to about a third at the published sizes. No torch.
"""

from typing import Literal, NamedTuple

from gear_dist.config import RunConfig

_FP32 = 4
_BF16 = 2
_MOMENTS = {"adamw": 2, "sgd": 0}

# Bytes that the backward keeps per output element of a residual block: the inputs of two
# convolutions, two norms and two SiLUs. Autocast keeps fp32 copies around each norm as well, so
# bf16 saves nothing here. Checked against 58 GiB for 32 images at 256 px.
_RES_BLOCK_BYTES = {"fp32": 28, "bf16": 32}
# Per token, layer and unit of width: norms, qkv, attention output, SwiGLU, dropout masks.
_LAYER_BYTES = {"fp32": 68, "bf16": 34}
# Channels of VGG16's layers over the image's area, as multiples of H x W.
_VGG_CHANNELS = 270
_REFERENCE_MATRICES = 9


class ParameterCounts(NamedTuple):
    """Parameters of each network; `generator` counts its projector too."""

    tokenizer: int
    discriminator: int
    generator: int
    teacher: int = 0


class MemoryRow(NamedTuple):
    """Bytes that one network takes on one worker."""

    part: str
    parameters: int
    gradients: int
    optimizer: int
    average: int
    activations: int


class MemoryEstimate(NamedTuple):
    """Memory of one worker; `total_bytes` counts the largest activations only, as the updates of
    a step follow one another."""

    rows: tuple[MemoryRow, ...]
    buckets_bytes: int
    total_bytes: int
    world_size: int
    micro_batch: int
    zero_stage: int
    precision: str


def estimate_memory(
    config: RunConfig,
    counts: ParameterCounts,
    *,
    world_size: int,
    precision: Literal["fp32", "bf16"],
    on_cuda: bool,
) -> MemoryEstimate:
    """Estimate the memory of one worker of `world_size`.

    Stages with 0 steps are left out: their networks are not counted.

    Args:
        config: the run; `engine.precision=auto` must be resolved into `precision`.
        counts: parameters of each network.
        world_size: workers that share what ZeRO shards.
        precision: of the generator's engine; the tokenizer and discriminator keep fp32 weights.
        on_cuda: decides the default size of communication buckets.

    Raises:
        ConfigError: the global batch does not divide evenly.
    """
    stages = config.stages
    micro_batch = config.engine.micro_batch(world_size)
    trains_tokenizer = stages.tokenizer.steps + stages.joint.steps > 0
    trains_generator = stages.joint.steps + stages.generator.steps > 0
    states = _State(config, world_size, precision)
    rows = []
    if trains_tokenizer:
        rows.append(states.row("tokenizer", counts.tokenizer, averaged=True))
        rows.append(states.row("discriminator", counts.discriminator, averaged=False))
    else:
        rows.append(MemoryRow("tokenizer (frozen)", _FP32 * counts.tokenizer, 0, 0, 0, 0))
    if trains_generator:
        rows.append(states.row("generator", counts.generator, averaged=True))
    if trains_generator and counts.teacher:
        rows.append(MemoryRow("teacher (frozen)", _FP32 * counts.teacher, 0, 0, 0, 0))
    activations = _activations(config, micro_batch, precision)
    rows = [row._replace(activations=activations.get(row.part, 0)) for row in rows]
    trained = [getattr(counts, row.part) for row in rows if row.part in activations]
    buckets = _bucket_bytes(config, trained, on_cuda)
    fixed = sum(row.parameters + row.gradients + row.optimizer + row.average for row in rows)
    return MemoryEstimate(
        rows=tuple(rows),
        buckets_bytes=buckets,
        total_bytes=fixed + buckets + max(row.activations for row in rows),
        world_size=world_size,
        micro_batch=micro_batch,
        zero_stage=config.engine.zero_stage,
        precision=precision,
    )


class _State(NamedTuple):
    config: RunConfig
    world_size: int
    precision: str

    def row(self, part: str, count: int, *, averaged: bool) -> MemoryRow:
        stage = self.config.engine.zero_stage
        mixed = part == "generator" and self.precision == "bf16" and stage >= 1
        weight = _BF16 if mixed else _FP32
        # From stage 1 on DeepSpeed keeps a sharded fp32 copy of the weights, in fp32 runs too.
        per_parameter = _FP32 * (_MOMENTS[self.config.optimizer.name] + (stage >= 1))
        return MemoryRow(
            part=part,
            parameters=self._share(weight * count, stage >= 3),
            gradients=self._share(_FP32 * count, stage >= 2),
            optimizer=self._share(per_parameter * count, stage >= 1),
            average=self._share(_FP32 * count, stage >= 1) if averaged else 0,
            activations=0,
        )

    def _share(self, size: int, sharded: bool) -> int:
        return -(-size // self.world_size) if sharded else size


def _bucket_bytes(config: RunConfig, counts: list[int], on_cuda: bool) -> int:
    if config.engine.zero_stage == 0:
        return 0
    elements = config.engine.bucket_elements or (500_000_000 if on_cuda else 2_000_000)
    return sum(2 * _FP32 * min(elements, count) for count in counts)


def _activations(config: RunConfig, images: int, precision: str) -> dict[str, int]:
    """Bytes by update. The soft read-out's pass through the tap layers is the tokenizer's."""
    tokens = images * config.num_tokens
    codes = config.tokenizer.codebook_size
    side = config.data.image_size
    layer = _layer_bytes(config, precision) * tokens
    tokenizer = images * _tokenizer_elements(config) * _RES_BLOCK_BYTES[precision]
    if config.engine.kernels == "reference":
        tokenizer += _REFERENCE_MATRICES * _FP32 * tokens * codes
    if config.losses.lpips_weight > 0:
        tokenizer += images * _VGG_CHANNELS * side**2 * _FP32 * 3 // 2
    if config.stages.joint.steps > 0 and config.alignment.soft_weight > 0:
        tokenizer += layer * config.generator.tap_layer
    logits = 3 * _FP32 * tokens * codes
    # A level of the discriminator halves the area twice over and doubles the channels.
    discriminator = 2 * images * config.discriminator.width * (side // 2) ** 2 * 2 * 3 * _FP32
    return {
        "tokenizer": tokenizer,
        "discriminator": discriminator,
        "generator": layer * config.generator.num_layers + logits,
    }


def _layer_bytes(config: RunConfig, precision: str) -> int:
    """Bytes of one token in one block; fp32 attention keeps its matrix of probabilities."""
    size = _LAYER_BYTES[precision] * config.generator.width
    attention = 2 * _FP32 * config.generator.num_heads * config.num_tokens
    return size + (attention if precision == "fp32" else 0)


def _tokenizer_elements(config: RunConfig) -> int:
    """Output elements of all residual blocks, encoder and decoder, for one image."""
    model, side = config.tokenizer, config.data.image_size
    blocks = model.num_res_blocks + model.num_decoder_blocks
    levels = enumerate(model.level_channels)
    total = sum(blocks * channels * (side >> level) ** 2 for level, channels in levels)
    middle = 2 * model.num_middle_blocks * model.level_channels[-1] * config.num_tokens
    return total + middle


def format_bytes(size: float) -> str:
    """1536 gives '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def format_estimate(estimate: MemoryEstimate) -> str:
    """The estimate as a table of text, with what is rough about it."""
    head = ("", "parameters", "gradients", "optimizer", "EMA", "activations")
    lines = [head, *((row[0], *map(format_bytes, row[1:])) for row in estimate.rows)]
    width = max(len(line[0]) for line in lines)
    table = [line[0].ljust(width) + "".join(f"{cell:>13}" for cell in line[1:]) for line in lines]
    workers = f"{estimate.world_size} worker{'s' if estimate.world_size > 1 else ''}"
    return "\n".join(
        [
            f"Memory of each of {workers}: about {format_bytes(estimate.total_bytes)} "
            f"(ZeRO {estimate.zero_stage}, {estimate.precision}, "
            f"{estimate.micro_batch} images a micro-batch)",
            *table,
            f"communication buckets: {format_bytes(estimate.buckets_bytes)}. Activations are "
            "rough (to a third); the updates follow one another, so only the largest counts.",
        ]
    )
