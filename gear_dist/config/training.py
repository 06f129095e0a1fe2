"""Settings of training: losses, alignment, optimizer, stages, engines. No torch."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from gear_dist.config.checks import (
    MAX_WIDTH,
    require,
    require_at_least,
    require_at_most,
    require_fraction,
)

INIT_NETWORKS = ("tokenizer", "discriminator", "generator", "projectors")
"""Networks that are published, and that a run can start from."""


@dataclass(frozen=True)
class LossConfig:
    l1_weight: float = 1.0
    """Weight of the mean absolute error."""
    gradient_weight: float = 0.0
    """Weight of the mean absolute error of image gradients (the stand-in where LPIPS's \
weights are unavailable)."""
    lpips_weight: float = 1.0
    """Weight of LPIPS; needs both files below."""
    lpips_vgg16_path: str = ""
    """torchvision's VGG16 weights (keys features.N.weight); only the convolutions are used."""
    lpips_heads_path: str = ""
    """LPIPS's linear heads for VGG16 (keys linN.model.1.weight)."""

    def __post_init__(self) -> None:
        require_at_least("losses", self, 0, "l1_weight", "gradient_weight", "lpips_weight")


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
    """Weight of the hard alignment in the generator's loss, which trains the projector: 0 only \
where soft_weight is 0 as well; no teacher is loaded then."""
    projector_width: int = 2048
    """Hidden width of the projector."""

    def __post_init__(self) -> None:
        ok = self.soft_temperature > 0
        require(ok, f"alignment.soft_temperature={self.soft_temperature} must be > 0")
        require_at_least("alignment", self, 0, "soft_weight", "hard_weight")
        require(
            self.soft_weight == 0 or self.hard_weight > 0,
            f"alignment.soft_weight={self.soft_weight} with "
            f"alignment.hard_weight={self.hard_weight}: only the hard alignment trains the "
            f"projector that the soft one goes through: set "
            "alignment.hard_weight above 0, or both to 0",
        )
        require_at_least("alignment", self, 1, "projector_width")
        require_at_most("alignment", self, MAX_WIDTH, "projector_width")

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
        require_at_least("optimizer", self, 0, *names, "warmup_steps", "final_lr_ratio")
        require_fraction("optimizer", self, "ema_decay")


@dataclass(frozen=True)
class StageConfig:
    MAY_GROW: ClassVar[tuple[str, ...]] = ("steps",)

    steps: int = 0
    """Optimizer steps; 0: the stage is left out."""
    lr_scale: float = 1.0
    """Multiplies every learning rate in this stage."""


@dataclass(frozen=True)
class StagesConfig:
    tokenizer: StageConfig = field(default_factory=StageConfig)
    """Stage 0: tokenizer and discriminator."""
    joint: StageConfig = field(default_factory=StageConfig)
    """Stage 1 (GEAR): tokenizer, discriminator, generator and projector."""
    generator: StageConfig = field(default_factory=StageConfig)
    """Stage 2, and the baseline LlamaGen-REPA: generator and projector, tokenizer frozen."""
    init_from: str = ""
    """Folder of a run or of an imported model whose networks the first stage starts from; their \
architecture and image size are taken over where the configuration does not give its own."""
    init_networks: tuple[str, ...] = INIT_NETWORKS
    """Which of that folder's networks are taken, of those it has; the others start over."""

    def __post_init__(self) -> None:
        for name in ("tokenizer", "joint", "generator"):
            require_at_least(f"stages.{name}", getattr(self, name), 0, "steps", "lr_scale")
        unknown = set(self.init_networks) - set(INIT_NETWORKS)
        require(
            not unknown,
            f"stages.init_networks={list(self.init_networks)}: use some of "
            f"{', '.join(INIT_NETWORKS)}",
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
    MAY_CHANGE: ClassVar[tuple[str, ...]] = (
        "max_micro_batch",
        "max_skipped_steps",
        "zero_stage",
        "bucket_elements",
        "optimizer_offload",
        "keep_gathered_elements",
    )

    global_batch: int = 256
    """Images per optimizer step, over all workers."""
    accumulation: int = 1
    """Micro-batches that make up a step."""
    max_micro_batch: int = 0
    """Most images that a worker takes at a time when the run resumes with another number of \
workers: `accumulation` then changes so that the global batch stays; 0: as many as at the start."""
    max_skipped_steps: int = 5
    """Steps in a row that may be skipped because a loss or gradient is not finite. Then the run \
goes back to its last good checkpoint, once, and the next time ends with exit code 4."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage of all engines."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on CUDA, fp32 on CPU."""
    bucket_elements: int = 0
    """Elements of ZeRO's communication buckets; 0: 5e8 on CUDA, 2e6 on CPU. At most \
a network's parameters."""
    optimizer_offload: Literal["none", "cpu"] = "none"
    """cpu: ZeRO's fp32 weights, optimizer states and averages live in host memory, and the host \
takes the optimizer's step; needs a zero_stage of at least 1. Results match up to rounding. No \
benefit on CPU."""
    keep_gathered_elements: int = 1_000_000_000
    """ZeRO-3: up to this many parameters of a network stay gathered from forward to backward and \
are fetched ahead; 0: each layer's are freed after use, and gathered once more for the backward."""
    kernels: Literal["auto", "triton", "torch", "reference"] = "auto"
    """Implementation of the codebook kernels; auto: Triton on CUDA, else blocked torch."""
    deterministic: bool = False
    """Only deterministic algorithms; slower on CUDA."""

    def __post_init__(self) -> None:
        require_at_least("engine", self, 1, "global_batch", "accumulation", "max_skipped_steps")
        names = ("bucket_elements", "max_micro_batch", "keep_gathered_elements")
        require_at_least("engine", self, 0, *names)
        require(
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
        require(
            self.global_batch % parts == 0,
            f"engine.global_batch={self.global_batch} is not divisible by run.workers x "
            f"engine.accumulation = {workers} x {self.accumulation}: use a multiple of {parts}",
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
        require(
            found > 0,
            f"engine.global_batch={self.global_batch} is not divisible by {workers} "
            "workers: set run.workers to a number that divides it",
        )
        return found
