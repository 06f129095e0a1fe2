"""Settings of the networks. No torch."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from gear_dist.config.checks import (
    MAX_LAYERS,
    MAX_WIDTH,
    require,
    require_at_least,
    require_at_most,
    require_fraction,
)

MAX_BATCH = 65_536
"""Images that are generated at a time."""
MAX_SCALE = 10_000.0
"""Of guidance and temperature: far more is beyond a float's range once it meets logits."""
MAX_DISCRIMINATOR_MULTIPLIER = 8
"""Most channels of a discriminator's layer, as a multiple of its first layer's."""


@dataclass(frozen=True)
class TokenizerConfig:
    MAY_CHANGE: ClassVar[tuple[str, ...]] = ("activation_checkpointing",)
    NOT_IN_WEIGHTS: ClassVar[tuple[str, ...]] = (
        "dropout",
        "commit_weight",
        "entropy_weight",
        "entropy_temperature",
        "activation_checkpointing",
    )

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
        require_at_least("tokenizer", self, 1, "norm_groups")
        require_at_least("tokenizer", self, 1, *names)
        require_at_most("tokenizer", self, MAX_WIDTH, "norm_groups", *names)
        require_at_most("tokenizer", self, MAX_LAYERS, "num_res_blocks")
        require_fraction("tokenizer", self, "dropout")
        levels = self.channel_multipliers
        ok = 1 <= len(levels) <= 16 and min(levels) >= 1 and max(levels) <= 1024
        require(
            ok, f"tokenizer.channel_multipliers={list(levels)}: use 1 to 16 integers of 1 to 1024"
        )
        for width in sorted({self.channels * m for m in levels}):
            require(
                width % self.norm_groups == 0,
                f"tokenizer.channels={self.channels} with channel_multipliers={list(levels)} "
                f"gives a level of {width} channels, not divisible by tokenizer.norm_groups="
                f"{self.norm_groups}: set that to a divisor (of a checkpoint: the one it was "
                "trained with, by --set)",
            )
        ok = self.entropy_temperature > 0
        require(ok, f"tokenizer.entropy_temperature={self.entropy_temperature} must be > 0")
        ok = all(-self.num_levels <= level < self.num_levels for level in self.attention_levels)
        require(
            ok,
            f"tokenizer.attention_levels={list(self.attention_levels)}: use levels from "
            f"{-self.num_levels} to {self.num_levels - 1} (tokenizer.channel_multipliers)",
        )
        ok = self.quantizer != "lfq" or self.codebook_size == 2**self.code_width
        require(
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
    MAY_CHANGE: ClassVar[tuple[str, ...]] = ("activation_checkpointing",)
    NOT_IN_WEIGHTS: ClassVar[tuple[str, ...]] = (
        "residual_dropout",
        "feed_forward_dropout",
        "token_dropout",
        "class_dropout",
        "activation_checkpointing",
    )

    width: int = 768
    """Width D of the residual stream."""
    num_layers: int = 12
    """Transformer blocks."""
    num_heads: int = 12
    """Attention heads."""
    condition: Literal["class", "text"] = "class"
    """What an image is generated for: a class, or a caption that a frozen text encoder has read \
(section text_encoder)."""
    num_classes: int = 1000
    """Classes of the condition; labels are 0 .. num_classes - 1. Not for text."""
    text_width: int = 2048
    """Width of the text encoder's features. For text only, like the two below."""
    text_mask: Literal["causal", "prefix"] = "causal"
    """What a caption's tokens see of their caption. causal: those before them; prefix: all."""
    text_rotary: Literal["identity", "zeros"] = "identity"
    """Rotary rows of the caption's tokens. identity: they are not turned; zeros: as in the \
published weights, whose text queries and keys are dead by it: all text attention is uniform."""
    residual_dropout: float = 0.1
    """Dropout of attention and feed-forward outputs on the residual stream."""
    feed_forward_dropout: float = 0.1
    """Dropout after the feed-forward's output matrix."""
    token_dropout: float = 0.1
    """Dropout of token embeddings."""
    class_dropout: float = 0.1
    """Probability that a label becomes the null class, or a caption the empty one, for guidance; \
drawn by seed, epoch and sample."""
    tap_layer: int = 4
    """The alignment reads the residual stream after this many blocks."""
    activation_checkpointing: bool = False
    """Keep only the input of each block for the backward, which computes the rest again: less \
memory for one more forward; the gradients stay the same."""

    def __post_init__(self) -> None:
        names = ("width", "num_layers", "num_heads", "num_classes", "text_width", "tap_layer")
        require_at_least("generator", self, 1, *names)
        require_at_most("generator", self, MAX_WIDTH, *names)
        require_at_most("generator", self, MAX_LAYERS, "num_layers")
        dropouts = ("residual_dropout", "feed_forward_dropout", "token_dropout", "class_dropout")
        require_fraction("generator", self, *dropouts)
        require(
            self.tap_layer <= self.num_layers,
            f"generator.tap_layer={self.tap_layer} is beyond the depth: "
            f"generator.num_layers={self.num_layers}",
        )
        require(
            self.width % (4 * self.num_heads) == 0,
            f"generator.width={self.width} must be a multiple of 4 x generator.num_heads"
            f"={self.num_heads}, for rotary pairs of rows and columns in each head",
        )

    @property
    def num_double_layers(self) -> int:
        """Blocks, the first ones, in which text and image have their own attention weights."""
        return max(1, round(self.num_layers / 3)) if self.condition == "text" else 0


@dataclass(frozen=True)
class DiscriminatorConfig:
    NOT_IN_WEIGHTS: ClassVar[tuple[str, ...]] = (
        "weight",
        "start_step",
        "lecam_weight",
        "lecam_decay",
    )

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
        require_at_least("discriminator", self, 1, "width", "num_layers", "norm_groups")
        require_at_most("discriminator", self, MAX_WIDTH, "width", "norm_groups")
        require_at_most("discriminator", self, 16, "num_layers")
        require_at_least("discriminator", self, 0, "start_step", "weight", "lecam_weight")
        require_fraction("discriminator", self, "lecam_decay")
        for channels in self.layer_channels if self.norm == "group" else ():
            require(
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
class SamplingConfig:
    MAY_CHANGE: ClassVar[tuple[str, ...]] = ("*",)

    guidance: float = 2.0
    """Classifier-free guidance scale s: logits = null + s (class - null); 1: off."""
    guidance_schedule: Literal["constant", "interval", "linear", "cosine"] = "constant"
    """Scale s_t of token t of L, at the place x = t / (L - 1). constant: s; interval: s where \
guidance_start <= x <= guidance_end, 1 elsewhere; linear: 1 + (s - 1) y; cosine: 1 + (s - 1) (1 - \
cos(pi y)) / 2, where y goes from 0 at guidance_start to 1 at guidance_end and stays there."""
    guidance_start: float = 0.0
    """Place where the schedule begins; 0: the first token. Not for constant."""
    guidance_end: float = 1.0
    """Place where the schedule ends; 1: the last token. Not for constant."""
    temperature: float = 1.0
    """Temperature of the token distribution; 0: the likeliest code every time (greedy)."""
    top_k: int = 0
    """Sample among the k likeliest codes; 0: all."""
    top_p: float = 1.0
    """Sample among the likeliest codes that hold this probability mass; 1: all."""
    min_p: float = 0.0
    """Sample among codes at least this many times as probable as the likeliest; 0: all."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Numbers of the generator's weights and cache; auto: bf16 on CUDA, fp32 elsewhere."""
    cache_dtype: Literal["auto", "fp8"] = "auto"
    """Numbers of the key-value cache; auto: as the weights; fp8 (e4m3): half of bf16, CUDA only."""
    compile: bool = True
    """On CUDA, compile the step of a token and replay it as CUDA graphs."""
    batch: int = 64
    """Images that are generated at a time, at most."""
    fixed_batches: bool = False
    """Fill every batch up to sampling.batch images, so that products always have one shape and a \
sample's bytes do not depend on how many are asked for. In fp32 on the CPU they never do."""

    def __post_init__(self) -> None:
        require_at_least("sampling", self, 0, "guidance", "temperature", "top_k")
        require_at_most("sampling", self, MAX_SCALE, "guidance", "temperature")
        require_at_least("sampling", self, 1, "batch")
        require_at_most("sampling", self, MAX_BATCH, "batch")
        self._check_schedule()
        require(0 < self.top_p <= 1, f"sampling.top_p={self.top_p} must be in (0, 1]")
        require(0 <= self.min_p <= 1, f"sampling.min_p={self.min_p} must be in [0, 1]")

    def _check_schedule(self) -> None:
        start, end = self.guidance_start, self.guidance_end
        require(
            0 <= start < end <= 1,
            f"sampling.guidance_start={start} and sampling.guidance_end={end} must be places with "
            "0 <= start < end <= 1",
        )
        require(
            self.guidance_schedule != "constant" or (start, end) == (0, 1),
            f"sampling.guidance_schedule=constant has no guidance_start={start} or "
            f"guidance_end={end}: use interval, linear or cosine",
        )
