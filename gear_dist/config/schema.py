"""Every setting of a run, as frozen dataclasses. No torch.

A section says of its own settings, in class variables: MAY_CHANGE, those that may change when a run
resumes ("*": all); MAY_GROW, those that may only grow then; NOT_IN_WEIGHTS, those of a network that
its weights do not depend on.
"""

from dataclasses import dataclass, field, fields, replace

from gear_dist.config.checks import require, require_at_least
from gear_dist.config.data import DataConfig
from gear_dist.config.models import (
    DiscriminatorConfig,
    GeneratorConfig,
    SamplingConfig,
    TeacherConfig,
    TokenizerConfig,
)
from gear_dist.config.run import CheckpointConfig, CollapseConfig, LogConfig, RunSection
from gear_dist.config.text import TextEncoderConfig
from gear_dist.config.training import (
    AlignmentConfig,
    EngineConfig,
    LossConfig,
    OptimizerConfig,
    StagesConfig,
)
from gear_dist.storage.addresses import parse_address
from gear_dist.storage.paths import local_path


@dataclass(frozen=True)
class RunConfig:
    """A whole run. Each part is built from its own section."""

    run: RunSection = field(default_factory=RunSection)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    text_encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
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
    collapse: CollapseConfig = field(default_factory=CollapseConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        self._check_places()
        factor = self.tokenizer.downsampling
        require(
            self.data.image_size % factor == 0,
            f"data.image_size={self.data.image_size} is not divisible by the tokenizer's "
            f"downsampling {factor} (tokenizer.channel_multipliers)",
        )
        require(
            self.tokenizer.quantizer != "lfq" or self.grid_size > 1,
            f"data.image_size={self.data.image_size} is one token, and lfq's decoder reads the "
            f"variance over tokens: use at least {2 * factor}",
        )
        for section, teacher in self.teachers.items():
            require_at_least(section, teacher, 0, "block")
            ok = 0 <= teacher.alpha <= 1
            require(ok, f"{section}.alpha={teacher.alpha} is out of range: use 0 to 1")

    def _check_places(self) -> None:
        """Refuse what is not an address, and object stores where only folders work."""
        data, losses = self.data, self.losses
        local_path(self.run.root, "run.root")
        addresses = {"run.resume": self.run.resume, "data.train": data.train} | {
            "data.validation": data.validation,
            "checkpoint.address": self.checkpoint.address,
        }
        for name, address in [*addresses.items(), *(("data.mixture", one) for one in data.mixture)]:
            if address:
                parse_address(address, name)
        require(all(data.mixture), f"data.mixture={list(data.mixture)} has an empty address")
        paths = {f"{name}.path": teacher.path for name, teacher in self.teachers.items()}
        paths["text_encoder.path"] = self.text_encoder.path
        paths["stages.init_from"] = self.stages.init_from
        paths["data.cache_folder"] = data.cache_folder
        for name in ("lpips_vgg16_path", "lpips_heads_path"):
            paths[f"losses.{name}"] = getattr(losses, name)
        for name, path in paths.items():
            if path:
                local_path(path, name)

    @property
    def teachers(self) -> dict[str, TeacherConfig]:
        """All teachers by the name of their section, in the order of their projectors.

        That of the names, not of a file: a run still resumes if a file's sections change places.
        """
        more = sorted(self.more_teachers.items())
        return {"teacher": self.teacher} | {f"more_teachers.{name}": one for name, one in more}

    @property
    def num_label_classes(self) -> int | None:
        """Classes that images may have; None: no generator is trained on them, so any will do."""
        trained = self.stages.has_generator and self.generator.condition == "class"
        return self.generator.num_classes if trained else None

    @property
    def reads_captions(self) -> bool:
        """Whether a generator is trained on captions."""
        return self.stages.has_generator and self.generator.condition == "text"

    @property
    def training_data(self) -> DataConfig:
        """How training reads its data: a generator of captions drops them itself, so that what
        reaches the tokenizer through it sees them all."""
        return replace(self.data, caption_dropout=0.0) if self.reads_captions else self.data

    @property
    def grid_size(self) -> int:
        """Tokens along a side."""
        return self.data.image_size // self.tokenizer.downsampling

    @property
    def num_tokens(self) -> int:
        """Tokens L per image."""
        return self.grid_size**2

    def check_trainable(self) -> None:
        """Raise ConfigError where a run cannot start because a setting is missing."""
        require(bool(self.data.train), "data.train is empty: name a sharded corpus")
        ok = self.stages.total_steps > 0
        require(ok, "stages: all have 0 steps; set stages.tokenizer.steps or another")
        stages = self.stages
        require(
            not self.reads_captions or self.data.captions != "off",
            "generator.condition=text trains on captions, and data.captions=off: set "
            "data.captions=random, or first",
        )
        taken = bool(stages.init_from) and "tokenizer" in stages.init_networks
        require(
            taken or stages.has_tokenizer,
            "stages.generator.steps: that stage keeps the tokenizer as it is, and nothing trains "
            "one before: set stages.tokenizer.steps or stages.joint.steps, or "
            "stages.init_from to a folder that has one",
        )
        guided = self.sampling.guidance != 1 and self.stages.has_generator
        require(
            not guided or self.generator.class_dropout > 0,
            f"sampling.guidance={self.sampling.guidance} needs a null class, which "
            "generator.class_dropout=0 never trains: set sampling.guidance=1",
        )
        losses = self.losses
        has_files = bool(losses.lpips_vgg16_path and losses.lpips_heads_path)
        require(
            losses.lpips_weight == 0 or has_files or not stages.has_tokenizer,
            f"losses.lpips_weight={losses.lpips_weight} needs losses.lpips_vgg16_path and "
            "losses.lpips_heads_path; without those files set losses.lpips_weight=0 "
            "losses.gradient_weight=1",
        )


def architecture_settings(network: str) -> tuple[str, tuple[str, ...]]:
    """Where a configuration describes a network of `INIT_NETWORKS`.

    Returns:
        The section, and those of its settings that the network's weights depend on.
    """
    if network == "projectors":
        return "alignment", ("projector_width",)
    section = getattr(RunConfig(), network)
    names = (setting.name for setting in fields(section))
    return network, tuple(name for name in names if name not in section.NOT_IN_WEIGHTS)
