"""Every setting of a run, as frozen dataclasses. No torch. How they are read: config_files.py."""

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from gear_dist.config.colour import parse_colour
from gear_dist.errors import ConfigError
from gear_dist.redaction import refuse_user
from gear_dist.storage.addresses import parse_address
from gear_dist.storage.paths import local_path


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


def _require_at_least(section: str, config: Any, low: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value >= low, f"{section}.{name}={value} is too small: use at least {low}")


def _require_at_most(section: str, config: Any, high: float, *names: str) -> None:
    """Bounds far beyond any use, so that a slip of the hand neither fills memory nor never ends."""
    for name in names:
        value = getattr(config, name)
        _require(value <= high, f"{section}.{name}={value} is too large: use at most {high}")


def _require_fraction(section: str, config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(0 <= value < 1, f"{section}.{name}={value} is out of range: use 0 <= value < 1")


def _require_colour(name: str, text: str) -> None:
    try:
        parse_colour(text)
    except ValueError as error:
        raise ConfigError(f"{name}={text}: {error}") from None


MAX_WIDTH = 2**20
"""Channels, codes and classes of a network, and pixels of a side."""
MAX_LAYERS = 10_000
MAX_THREADS = 4096
START_NETWORKS = ("tokenizer", "discriminator", "generator", "projectors")
"""Networks that are published, and that a run can start from."""
NOT_IN_WEIGHTS = {
    "tokenizer": (
        "dropout",
        "commit_weight",
        "entropy_weight",
        "entropy_temperature",
        "activation_checkpointing",
    ),
    "generator": (
        "residual_dropout",
        "feed_forward_dropout",
        "token_dropout",
        "class_dropout",
        "activation_checkpointing",
    ),
    "discriminator": ("weight", "start_step", "lecam_weight", "lecam_decay"),
}
"""Settings of a network's section that its weights do not depend on."""
MAX_DISCRIMINATOR_MULTIPLIER = 8
"""Most channels of a discriminator's layer, as a multiple of its first layer's."""


@dataclass(frozen=True)
class RunSection:
    name: str = "run"
    """Name of the run; also the name of its folder under `root`."""
    root: str = "runs"
    """Folder that holds run folders; on a cluster a path that every node shares."""
    seed: int = 0
    """Seed of initialisation, data order, dropouts and sample grids."""
    launcher: Literal["ray", "local"] = "ray"
    """ray: Ray Train starts the workers; local: this process (or torchrun's) is the worker."""
    workers: int = 0
    """Worker processes; 0: one a GPU, or two where there is no GPU (launcher=ray)."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto: CUDA where a device is visible, else CPU."""
    threads: int = 1
    """CPU threads of a worker's tensor operations; on CPU one a process is fastest."""
    resume: str = "auto"
    """auto: continue from the run's newest good checkpoint; none: start anew, refused where the \
folder already holds a run; a checkpoint's folder: go on from that one, this run's or another's of \
the same configuration."""
    min_workers: int = 0
    """Fewest workers that training goes on with when nodes are gone (launcher=ray): each start \
takes as many as there is room for, up to `workers`. 0: always `workers`."""
    max_failures: int = 3
    """Crashes (killed, out of memory, node lost, hang) after which training starts again from the \
newest checkpoint (launcher=ray). The count begins anew with every new checkpoint; preemptions do \
not count."""
    hang_timeout_s: int = 600
    """Seconds without a step after which a worker writes the stacks of its threads to its log and \
ends; longer than any evaluation takes. A checkpoint that is slow but moves on is no hang. 0: \
never."""
    preemption_grace_s: int = 30
    """Seconds that workers have to stop with a checkpoint when one of their nodes is to go; then \
training goes on elsewhere from the checkpoint before."""

    def __post_init__(self) -> None:
        names = ("workers", "seed", "min_workers", "max_failures", "hang_timeout_s")
        _require_at_least("run", self, 0, *names)
        _require_at_least("run", self, 1, "threads", "preemption_grace_s")
        _require_at_most("run", self, MAX_THREADS, "threads")
        _require(
            self.workers == 0 or self.min_workers <= self.workers,
            f"run.min_workers={self.min_workers} must be at most run.workers={self.workers}",
        )
        ok = bool(self.name) and "/" not in self.name and self.name not in (".", "..")
        _require(ok, f"run.name={self.name!r} must be a plain folder name")

    @property
    def folder(self) -> Path:
        """The run folder."""
        return local_path(self.root, "run.root") / self.name


@dataclass(frozen=True)
class DataConfig:
    train: str = ""
    """Sharded training corpus: s3://bucket/prefix, file:///folder or a path."""
    mixture: tuple[str, ...] = ()
    """Further training corpora that are mixed with `train`."""
    mixture_weights: tuple[float, ...] = ()
    """Share of each batch for `train` and each corpus of `mixture`, in proportion; empty: the \
corpora are joined, so that an epoch shows every sample once."""
    validation: str = ""
    """Sharded validation corpus for grids and evaluation; empty: the training corpus."""
    endpoint: str = ""
    """S3 endpoint for s3:// addresses; empty: the AWS default or AWS_ENDPOINT_URL."""
    image_size: int = 256
    """Side of the square crops, pixels."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    max_pixels: int = 64_000_000
    """Largest width x height that is decoded; larger images are refused before decoding."""
    decoding: Literal["exact", "fast"] = "exact"
    """exact: pixels within one grey level of PIL's bicubic resize; fast: JPEGs of at least twice \
the size are decoded at a half, a quarter or an eighth, which changes pixels."""
    background: str = "white"
    """Colour that transparent pixels are composited over: a name, #rrggbb, or three numbers from \
0 to 255 with commas between them."""
    captions: Literal["off", "first", "random"] = "off"
    """Captions in the batches: none, each image's first, or one of its captions drawn anew every \
epoch. Unless off, a sample may lack a class and must have a caption."""
    caption_dropout: float = 0.1
    """Probability that a caption is replaced by an empty one in training, for guidance."""
    prefetch_batches: int = 4
    """Batches that the loader's thread reads ahead."""
    shuffle_buffer_shards: int = 8
    """Shards whose samples are mixed at any time, over all workers: at most, and at least one a \
worker. A corpus of up to 256 MiB is kept in memory and mixed as a whole."""
    shard_memory_bytes: int = 4 << 30
    """Memory of a worker for shards, half of it for those that are mixed and half for the next. \
Where `shuffle_buffer_shards` of them need more, a run that starts mixes fewer; later the setting \
may change, and only limits how early shards are fetched."""
    lanes: int = 0
    """Equal segments of the epoch, of each of which every global batch takes the same number of \
samples; a worker reads only its own. A divisor of engine.global_batch, at best a multiple of the \
number of workers; 0: chosen when the run starts. They stay when the number of workers changes."""
    tail: Literal["drop", "repeat"] = "drop"
    """The samples of an epoch that do not fill a global batch: left out, others every epoch, or \
filled up with samples of the epoch's beginning."""
    decode_threads: int = 2
    """Threads of a worker that decode images; what it yields does not depend on it."""
    max_bad_share: float = 0.001
    """Share of a worker's samples of an epoch that may be unusable: each is named in the run \
folder's bad_samples.txt and replaced by the next one of its shard; more of them end the run."""
    read_attempts: int = 3
    """Tries of a shard that cannot be read or is damaged, with growing pauses; on S3 each is \
itself up to ten requests."""
    cache_folder: str = ""
    """Local folder where shards are kept once they are read; empty: none."""
    cache_bytes: int = 100_000_000_000
    """Size up to which `cache_folder` grows; then the shards longest unused go."""

    def __post_init__(self) -> None:
        refuse_user("data.endpoint", self.endpoint, endpoint=True)
        _require_at_least("data", self, 1, "image_size", "max_pixels", "shuffle_buffer_shards")
        _require_at_least("data", self, 1, "prefetch_batches", "decode_threads", "read_attempts")
        _require_at_least("data", self, 1, "shard_memory_bytes")
        _require_at_least("data", self, 0, "lanes", "cache_bytes")
        _require_at_most("data", self, MAX_WIDTH, "image_size", "lanes")
        _require_at_most("data", self, MAX_THREADS, "prefetch_batches", "decode_threads")
        _require(0 <= self.flip <= 1, f"data.flip={self.flip} is out of range: use 0 to 1")
        _require_fraction("data", self, "max_bad_share", "caption_dropout")
        _require_colour("data.background", self.background)
        weights = self.mixture_weights
        _require(
            all(weight > 0 for weight in weights),
            f"data.mixture_weights={list(weights)} must all be > 0; leave a corpus out instead",
        )

    @property
    def train_addresses(self) -> tuple[str, ...]:
        """All training corpora."""
        return (self.train, *self.mixture)


@dataclass(frozen=True)
class TokenizerConfig:
    quantizer: Literal["vq", "lfq", "ibq"] = "vq"
    """Quantizer family, each with its own encoder and decoder. Published widths and blocks: vq 8 \
and 2, lfq 14 and 4, ibq 256 and 4."""
    codebook_size: int = 16384
    """Number of codes K; lfq has 2^code_width."""
    code_width: int = 8
    """Width C of a code; lfq's bits."""
    channels: int = 128
    """Channels of the first level."""
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Channel multiplier of each level; each level after the first halves the resolution."""
    num_res_blocks: int = 2
    """Residual blocks of an encoder level (the decoder has one more, but lfq's)."""
    attention_levels: tuple[int, ...] = (-1,)
    """Levels with attention after their blocks: 0 is the highest resolution, -1 the lowest. Not \
for lfq, which has no attention."""
    latent_channels: int = 256
    """Channels between the encoder and the quantizer's 1x1 convolution. Not for lfq, whose \
encoder ends with the code."""
    norm_groups: int = 32
    """Groups of the group norms. The public checkpoints have 32; a narrow tokenizer needs fewer, \
because a group of one channel loses its mean, and so the colours."""
    dropout: float = 0.0
    """Dropout inside residual blocks."""
    commit_weight: float = 0.25
    """Weight of the commitment loss."""
    entropy_weight: float = 0.05
    """Weight of the entropy term (per-token entropy minus entropy of the mean)."""
    entropy_temperature: float = 0.01
    """Temperature of the entropy term's softmax."""
    activation_checkpointing: bool = False
    """Keep only the input of each residual and attention block for the backward, which computes \
the rest again: less memory for one more forward; the gradients stay the same."""

    def __post_init__(self) -> None:
        names = ("codebook_size", "code_width", "channels", "num_res_blocks", "latent_channels")
        _require_at_least("tokenizer", self, 1, "norm_groups")
        _require_at_least("tokenizer", self, 1, *names)
        _require_at_most("tokenizer", self, MAX_WIDTH, "norm_groups", *names)
        _require_at_most("tokenizer", self, MAX_LAYERS, "num_res_blocks")
        _require_fraction("tokenizer", self, "dropout")
        levels = self.channel_multipliers
        ok = 1 <= len(levels) <= 16 and min(levels) >= 1 and max(levels) <= 1024
        _require(
            ok, f"tokenizer.channel_multipliers={list(levels)}: use 1 to 16 integers of 1 to 1024"
        )
        for width in sorted({self.channels * m for m in levels}):
            _require(
                width % self.norm_groups == 0,
                f"tokenizer.channels={self.channels} with channel_multipliers={list(levels)} "
                f"gives a level of {width} channels, not divisible by tokenizer.norm_groups="
                f"{self.norm_groups}",
            )
        ok = self.entropy_temperature > 0
        _require(ok, f"tokenizer.entropy_temperature={self.entropy_temperature} must be > 0")
        ok = all(-self.num_levels <= level < self.num_levels for level in self.attention_levels)
        _require(
            ok,
            f"tokenizer.attention_levels={list(self.attention_levels)}: use levels from "
            f"{-self.num_levels} to {self.num_levels - 1} (tokenizer.channel_multipliers)",
        )
        ok = self.quantizer != "lfq" or self.codebook_size == 2**self.code_width
        _require(
            ok,
            f"tokenizer.codebook_size={self.codebook_size} is not 2^tokenizer.code_width="
            f"2^{self.code_width}, which lfq has: set tokenizer.code_width="
            f"{max(1, round(math.log2(self.codebook_size)))} or another codebook_size",
        )

    @property
    def num_levels(self) -> int:
        """Resolutions of the encoder and of the decoder."""
        return len(self.channel_multipliers)

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of each level, the highest resolution first."""
        return tuple(self.channels * m for m in self.channel_multipliers)

    @property
    def num_decoder_blocks(self) -> int:
        """Residual blocks of a decoder level."""
        return self.num_res_blocks + (self.quantizer != "lfq")

    @property
    def num_middle_blocks(self) -> int:
        """Residual blocks at the lowest resolution between the levels and the latents."""
        return self.num_res_blocks if self.quantizer == "lfq" else 2

    def has_attention(self, level: int) -> bool:
        """Whether attention follows the residual blocks of a level, counted from 0."""
        return level in {index % self.num_levels for index in self.attention_levels}

    @property
    def downsampling(self) -> int:
        """Pixels per token along a side."""
        return 2 ** (self.num_levels - 1)


@dataclass(frozen=True)
class GeneratorConfig:
    width: int = 768
    """Width D of the residual stream."""
    num_layers: int = 12
    """Transformer blocks."""
    num_heads: int = 12
    """Attention heads."""
    num_classes: int = 1000
    """Classes of the condition; labels are 0 .. num_classes - 1."""
    residual_dropout: float = 0.1
    """Dropout of attention and feed-forward outputs on the residual stream."""
    feed_forward_dropout: float = 0.1
    """Dropout after the feed-forward's output matrix."""
    token_dropout: float = 0.1
    """Dropout of token embeddings."""
    class_dropout: float = 0.1
    """Probability that a label becomes the null class, for guidance; drawn by seed, epoch and \
sample."""
    tap_layer: int = 4
    """The alignment reads the residual stream after this many blocks."""
    activation_checkpointing: bool = False
    """Keep only the input of each block for the backward, which computes the rest again: less \
memory for one more forward; the gradients stay the same."""

    def __post_init__(self) -> None:
        names = ("width", "num_layers", "num_heads", "num_classes", "tap_layer")
        _require_at_least("generator", self, 1, *names)
        _require_at_most("generator", self, MAX_WIDTH, *names)
        _require_at_most("generator", self, MAX_LAYERS, "num_layers")
        dropouts = ("residual_dropout", "feed_forward_dropout", "token_dropout", "class_dropout")
        _require_fraction("generator", self, *dropouts)
        _require(
            self.tap_layer <= self.num_layers,
            f"generator.tap_layer={self.tap_layer} is beyond the depth: "
            f"generator.num_layers={self.num_layers}",
        )
        _require(
            self.width % (4 * self.num_heads) == 0,
            f"generator.width={self.width} must be a multiple of 4 x generator.num_heads"
            f"={self.num_heads}, for rotary pairs of rows and columns in each head",
        )


@dataclass(frozen=True)
class DiscriminatorConfig:
    width: int = 64
    """Channels of the first layer."""
    num_layers: int = 3
    """Stride-2 layers."""
    norm: Literal["batch", "group"] = "batch"
    """Norm between the convolutions. batch: statistics of all workers' images, the published one; \
group: of each image alone, without communication, and the convolutions before it have a bias."""
    norm_groups: int = 32
    """Groups of a group norm."""
    weight: float = 0.1
    """Weight of the adversarial loss in the tokenizer's."""
    start_step: int = 0
    """Step of the run from which the adversarial loss counts; the discriminator trains before."""
    lecam_weight: float = 0.0
    """Weight of the LeCam regularisation in the discriminator's loss, for little data; 0: off."""
    lecam_decay: float = 0.999
    """Decay of LeCam's moving averages of the mean logits; 0.99 in its paper."""

    def __post_init__(self) -> None:
        _require_at_least("discriminator", self, 1, "width", "num_layers", "norm_groups")
        _require_at_most("discriminator", self, MAX_WIDTH, "width", "norm_groups")
        _require_at_most("discriminator", self, 16, "num_layers")
        _require_at_least("discriminator", self, 0, "start_step", "weight", "lecam_weight")
        _require_fraction("discriminator", self, "lecam_decay")
        for channels in self.layer_channels if self.norm == "group" else ():
            _require(
                channels % self.norm_groups == 0,
                f"discriminator.width={self.width} gives a layer of {channels} channels, not "
                f"divisible by discriminator.norm_groups={self.norm_groups}",
            )

    @property
    def layer_channels(self) -> tuple[int, ...]:
        """Channels of each layer with a norm."""
        multipliers = (2**i for i in range(1, self.num_layers + 1))
        return tuple(self.width * min(m, MAX_DISCRIMINATOR_MULTIPLIER) for m in multipliers)


@dataclass(frozen=True)
class LossConfig:
    l1_weight: float = 1.0
    """Weight of the mean absolute error."""
    gradient_weight: float = 0.0
    """Weight of the mean absolute error of image gradients (the stand-in where LPIPS's \
weights cannot be had)."""
    lpips_weight: float = 1.0
    """Weight of LPIPS; needs both files below."""
    lpips_vgg16_path: str = ""
    """torchvision's VGG16 weights (keys features.N.weight); only the convolutions are used."""
    lpips_heads_path: str = ""
    """LPIPS's linear heads for VGG16 (keys linN.model.1.weight)."""

    def __post_init__(self) -> None:
        _require_at_least("losses", self, 0, "l1_weight", "gradient_weight", "lpips_weight")


@dataclass(frozen=True)
class TeacherConfig:
    name: Literal["dinov2", "dinov3", "siglip2", "clip", "vjepa2", "convnet"] = "dinov2"
    """Family of the frozen encoder whose features the tap is aligned to."""
    path: str = "facebook/dinov2-base"
    """A local folder or hub name of the family; convnet: the file that `gear-dist teacher` \
wrote."""
    block: int = 0
    """Features are the tokens after this many blocks, before the final norm; 0: the encoder's \
output. Not for convnet."""
    normalisation: Literal["auto", "none", "demean", "zscore"] = "auto"
    """Spatial normalisation of each feature channel over the positions of its image; demean: z - \
alpha mean(z); zscore: that divided by the standard deviation; auto: zscore for siglip2, clip and \
vjepa2, none for the others."""
    alpha: float = 0.6
    """Share of the mean that demean and zscore remove."""


@dataclass(frozen=True)
class AlignmentConfig:
    estimator: Literal["soft", "straight-through"] = "soft"
    """What of the generator's losses reaches the tokenizer in the joint stage, and how. soft: the \
alignment, through the soft read-out (GEAR). straight-through: alignment and cross-entropy, \
through a hard one-hot with the soft one's gradient as the generator's input and target (the \
ablation STE, in which the codebook collapses)."""
    soft_temperature: float = 0.1
    """Temperature tau of the soft read-out."""
    soft_weight: float = 0.5
    """Weight of that alignment in the tokenizer's loss."""
    hard_weight: float = 0.5
    """Weight of the hard alignment in the generator's loss; with both weights 0 no teacher \
is loaded."""
    projector_width: int = 2048
    """Hidden width of the projector."""

    def __post_init__(self) -> None:
        ok = self.soft_temperature > 0
        _require(ok, f"alignment.soft_temperature={self.soft_temperature} must be > 0")
        _require_at_least("alignment", self, 0, "soft_weight", "hard_weight")
        _require_at_least("alignment", self, 1, "projector_width")
        _require_at_most("alignment", self, MAX_WIDTH, "projector_width")

    @property
    def enabled(self) -> bool:
        """Whether a teacher is needed."""
        return self.soft_weight > 0 or self.hard_weight > 0

    @property
    def reaches_tokenizer(self) -> bool:
        """Whether the joint stage's tokenizer takes a gradient through the generator."""
        return self.soft_weight > 0 or self.estimator == "straight-through"


@dataclass(frozen=True)
class OptimizerConfig:
    name: Literal["adamw", "sgd"] = "adamw"
    """sgd is plain, for comparisons."""
    tokenizer_lr: float = 1e-4
    """Learning rate of the tokenizer."""
    discriminator_lr: float = 1e-4
    """Learning rate of the discriminator."""
    generator_lr: float = 1e-4
    """Learning rate of the generator and its projector."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moment decays."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    warmup_steps: int = 0
    """Steps over which each stage's rates rise linearly from 0."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After warm-up: constant, or cosine to `final_lr_ratio` at the stage's end."""
    final_lr_ratio: float = 0.1
    """Where the cosine ends, as a share of the rate."""
    clip_norm: float = 1.0
    """Gradient-norm clipping of each engine; 0: off."""
    ema_decay: float = 0.9999
    """Decay of the exponential moving averages of tokenizer and generator."""

    def __post_init__(self) -> None:
        names = ("tokenizer_lr", "discriminator_lr", "generator_lr", "weight_decay", "clip_norm")
        _require_at_least("optimizer", self, 0, *names, "warmup_steps", "final_lr_ratio")
        _require_fraction("optimizer", self, "ema_decay")


@dataclass(frozen=True)
class StageConfig:
    steps: int = 0
    """Optimizer steps; 0: the stage is left out."""
    lr_scale: float = 1.0
    """Multiplies every learning rate in this stage."""

    def __post_init__(self) -> None:
        _require_at_least("stages.*", self, 0, "steps", "lr_scale")


@dataclass(frozen=True)
class StagesConfig:
    tokenizer: StageConfig = field(default_factory=StageConfig)
    """Stage 0: tokenizer and discriminator."""
    joint: StageConfig = field(default_factory=StageConfig)
    """Stage 1 (GEAR): tokenizer, discriminator, generator and projector."""
    generator: StageConfig = field(default_factory=StageConfig)
    """Stage 2, and the baseline LlamaGen-REPA: generator and projector, tokenizer frozen."""
    start_from: str = ""
    """Folder of a run or of an imported model whose networks the first stage starts from; their \
architecture is taken over where the configuration does not give its own."""
    start_networks: tuple[str, ...] = START_NETWORKS
    """Which of that folder's networks are taken, of those it has; the others start anew."""

    def __post_init__(self) -> None:
        unknown = set(self.start_networks) - set(START_NETWORKS)
        _require(
            not unknown,
            f"stages.start_networks={list(self.start_networks)}: use some of "
            f"{', '.join(START_NETWORKS)}",
        )

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer is trained."""
        return self.tokenizer.steps + self.joint.steps > 0

    @property
    def has_generator(self) -> bool:
        """Whether a generator is trained."""
        return self.joint.steps + self.generator.steps > 0

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.tokenizer.steps + self.joint.steps + self.generator.steps


@dataclass(frozen=True)
class EngineConfig:
    global_batch: int = 256
    """Images per optimizer step, over all workers."""
    accumulation: int = 1
    """Micro-batches that make up a step."""
    max_micro_batch: int = 0
    """Most images that a worker takes at a time when the run goes on with another number of \
workers: `accumulation` then changes so that the global batch stays; 0: as many as at the start."""
    max_skipped_steps: int = 5
    """Steps in a row that may be skipped because a loss or gradient is not finite. Then the run \
goes back to its last good checkpoint, once, and the next time ends with exit code 4."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage of all engines."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on CUDA, fp32 on CPU."""
    bucket_elements: int = 0
    """Elements of ZeRO's communication buckets; 0: 5e8 on CUDA, 2e6 on CPU."""
    optimizer_offload: Literal["none", "cpu"] = "none"
    """cpu: ZeRO's fp32 weights, optimizer states and averages live in host memory, and the host \
takes the optimizer's step; needs a zero_stage of at least 1. Equal to rounding. On CPU nothing is \
gained."""
    keep_gathered_elements: int = 1_000_000_000
    """ZeRO-3: up to this many parameters of a network stay gathered from forward to backward and \
are fetched ahead; 0: each layer's are freed after use, and gathered once more for the backward."""
    kernels: Literal["auto", "triton", "torch", "reference"] = "auto"
    """Implementation of the codebook kernels; auto: Triton on CUDA, else blocked torch."""
    deterministic: bool = False
    """Only deterministic algorithms; slower on CUDA."""

    def __post_init__(self) -> None:
        _require_at_least("engine", self, 1, "global_batch", "accumulation", "max_skipped_steps")
        names = ("bucket_elements", "max_micro_batch", "keep_gathered_elements")
        _require_at_least("engine", self, 0, *names)
        _require(
            self.optimizer_offload == "none" or self.zero_stage > 0,
            f"engine.optimizer_offload={self.optimizer_offload} is part of ZeRO, which "
            "engine.zero_stage=0 is without: set engine.zero_stage=1 or more",
        )

    def micro_batch(self, workers: int) -> int:
        """Images per worker and micro-batch.

        Raises:
            ConfigError: the global batch does not divide evenly.
        """
        parts = workers * self.accumulation
        _require(
            self.global_batch % parts == 0,
            f"engine.global_batch={self.global_batch} is not divisible by workers x "
            f"engine.accumulation = {workers} x {self.accumulation}",
        )
        return self.global_batch // parts

    def accumulation_for(self, workers: int, largest: int) -> int:
        """The fewest micro-batches of at most `largest` images each that make up a step.

        Raises:
            ConfigError: the global batch does not divide evenly.
        """
        parts = range(1, self.global_batch + 1)
        fitting = (n for n in parts if self.global_batch % (workers * n) == 0)
        found = next((n for n in fitting if self.global_batch // (workers * n) <= largest), 0)
        _require(
            found > 0,
            f"engine.global_batch={self.global_batch} is not divisible by {workers} workers: go on "
            "with a number of workers that divides it",
        )
        return found


@dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int = 1000
    """Steps between checkpoints; one is also written at stage ends and when the run is stopped."""
    address: str = ""
    """s3://BUCKET/PREFIX or a folder, in which the run's name is the checkpoints' folder; empty: \
the run folder. The S3 endpoint is data.endpoint."""
    asynchronous: bool = True
    """Training goes on while a checkpoint is written, from a copy of the state in host memory."""
    keep_last: int = 2
    """Newest checkpoints that are kept."""
    keep_every_steps: int = 0
    """Checkpoints of steps that this divides are kept as well; 0: none."""
    best_metric: str = ""
    """Name of a metric of metrics.jsonl, the lower the better, whose best checkpoint is kept as \
well; empty: none."""
    max_failed_saves: int = 3
    """Saves that fail in a row after which the run ends with exit code 5; until then a failed one \
costs a warning. 0: no limit."""
    take_over: str = ""
    """Id of another run whose address and checkpoints this run takes over, as the refusal names \
it; the other stops at its next checkpoint. Empty: none."""

    def __post_init__(self) -> None:
        _require_at_least("checkpoint", self, 1, "every_steps", "keep_last")
        _require_at_least("checkpoint", self, 0, "keep_every_steps", "max_failed_saves")


@dataclass(frozen=True)
class LogConfig:
    every_steps: int = 20
    """Steps between metric records; the only regular host synchronisation."""
    grid_every_steps: int = 0
    """Steps between reconstruction and sample grids; 0: at stage ends only."""
    usage_window_tokens: int = 65536
    """Codebook usage counts the codes used by the last this many tokens of all workers."""
    wandb: Literal["off", "auto"] = "off"
    """auto: log to Weights & Biases, offline where WANDB_API_KEY is missing or \
WANDB_MODE=offline."""
    wandb_project: str = "gear-dist"
    """Weights & Biases project."""

    def __post_init__(self) -> None:
        _require_at_least("log", self, 1, "every_steps", "usage_window_tokens")
        _require_at_least("log", self, 0, "grid_every_steps")


@dataclass(frozen=True)
class WatchdogConfig:
    patience: int = 3
    """Metric records (log.every_steps) in a row with the same trouble after which the run ends \
with exit code 4; it warns at the first, and takes no checkpoint while the trouble lasts. 0: off."""
    usage_floor: float = 0.1
    """The codebook has collapsed where fewer codes are in use than this share of the most that \
were at any record of the stage, each over log.usage_window_tokens tokens of all workers."""

    def __post_init__(self) -> None:
        _require_at_least("watchdog", self, 0, "patience")
        _require_fraction("watchdog", self, "usage_floor")


@dataclass(frozen=True)
class SamplingConfig:
    guidance: float = 2.0
    """Classifier-free guidance scale s: logits = null + s (class - null); 1: off."""
    temperature: float = 1.0
    """Temperature of the token distribution."""
    top_k: int = 0
    """Sample among the k likeliest codes; 0: all."""
    top_p: float = 1.0
    """Sample among the likeliest codes that hold this probability mass."""

    def __post_init__(self) -> None:
        _require_at_least("sampling", self, 0, "guidance", "top_k")
        _require(self.temperature > 0, f"sampling.temperature={self.temperature} must be > 0")
        _require(0 < self.top_p <= 1, f"sampling.top_p={self.top_p} must be in (0, 1]")


@dataclass(frozen=True)
class RunConfig:
    """A whole run. Each part is built from its own section."""

    run: RunSection = field(default_factory=RunSection)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    more_teachers: dict[str, TeacherConfig] = field(default_factory=dict)
    """Further teachers by names of your choice: `more_teachers.NAME.path` and so on. All read the \
same tap, each by a projector of its own; the alignment is the mean of theirs."""
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    stages: StagesConfig = field(default_factory=StagesConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        self._check_places()
        factor = self.tokenizer.downsampling
        _require(
            self.data.image_size % factor == 0,
            f"data.image_size={self.data.image_size} is not divisible by the tokenizer's "
            f"downsampling {factor} (tokenizer.channel_multipliers)",
        )
        _require(
            self.tokenizer.quantizer != "lfq" or self.grid_size > 1,
            f"data.image_size={self.data.image_size} is one token, and lfq's decoder reads the "
            f"variance over tokens: use at least {2 * factor}",
        )
        for section, teacher in self.teachers.items():
            _require_at_least(section, teacher, 0, "block")
            ok = 0 <= teacher.alpha <= 1
            _require(ok, f"{section}.alpha={teacher.alpha} is out of range: use 0 to 1")

    def _check_places(self) -> None:
        """Refuse what is no address, and object stores where only folders work."""
        data, losses = self.data, self.losses
        local_path(self.run.root, "run.root")
        addresses = {"run.resume": self.run.resume, "data.train": data.train} | {
            "data.validation": data.validation,
            "checkpoint.address": self.checkpoint.address,
        }
        for name, address in [*addresses.items(), *(("data.mixture", one) for one in data.mixture)]:
            if address:
                parse_address(address, name)
        paths = {f"{name}.path": teacher.path for name, teacher in self.teachers.items()}
        paths["stages.start_from"] = self.stages.start_from
        paths["data.cache_folder"] = data.cache_folder
        for name in ("lpips_vgg16_path", "lpips_heads_path"):
            paths[f"losses.{name}"] = getattr(losses, name)
        for name, path in paths.items():
            if path:
                local_path(path, name)

    @property
    def teachers(self) -> dict[str, TeacherConfig]:
        """All teachers by the name of their section, in the order of their projectors.

        That of the names, not of a file: a run goes on where a file's sections change places.
        """
        more = sorted(self.more_teachers.items())
        return {"teacher": self.teacher} | {f"more_teachers.{name}": one for name, one in more}

    @property
    def num_label_classes(self) -> int | None:
        """Classes that images may have; None: no generator is trained, so none is needed."""
        return self.generator.num_classes if self.stages.has_generator else None

    @property
    def grid_size(self) -> int:
        """Tokens along a side."""
        return self.data.image_size // self.tokenizer.downsampling

    @property
    def num_tokens(self) -> int:
        """Tokens L per image."""
        return self.grid_size**2

    def check_trainable(self) -> None:
        """Raise ConfigError where a run cannot start for want of a setting."""
        _require(bool(self.data.train), "data.train is empty: name a sharded corpus")
        ok = self.stages.total_steps > 0
        _require(ok, "stages: all have 0 steps; set stages.tokenizer.steps or another")
        stages = self.stages
        taken = bool(stages.start_from) and "tokenizer" in stages.start_networks
        _require(
            taken or stages.has_tokenizer,
            "stages.generator.steps: that stage keeps the tokenizer as it is, and nothing trains "
            "one before: set stages.tokenizer.steps or stages.joint.steps, or "
            "stages.start_from to a folder that has one",
        )
        guided = self.sampling.guidance != 1 and self.stages.has_generator
        _require(
            not guided or self.generator.class_dropout > 0,
            f"sampling.guidance={self.sampling.guidance} needs a null class, which "
            "generator.class_dropout=0 never trains: set sampling.guidance=1",
        )
        losses = self.losses
        has_files = bool(losses.lpips_vgg16_path and losses.lpips_heads_path)
        _require(
            losses.lpips_weight == 0 or has_files or not stages.has_tokenizer,
            f"losses.lpips_weight={losses.lpips_weight} needs losses.lpips_vgg16_path and "
            "losses.lpips_heads_path; without those files set losses.lpips_weight=0 "
            "losses.gradient_weight=1",
        )


def architecture_settings(network: str) -> tuple[str, tuple[str, ...]]:
    """Where a configuration describes a network of `START_NETWORKS`.

    Returns:
        The section, and those of its settings that the network's weights depend on.
    """
    if network == "projectors":
        return "alignment", ("projector_width",)
    names = (setting.name for setting in fields(getattr(RunConfig(), network)))
    return network, tuple(name for name in names if name not in NOT_IN_WEIGHTS[network])
