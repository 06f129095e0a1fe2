"""The networks of one stage: engines, averages, and their checkpointed state."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gear_dist.checkpoints.reader import CheckpointReader
from gear_dist.checkpoints.shards import TensorShard, replicated
from gear_dist.config.schema import RunConfig
from gear_dist.config.training import EngineConfig, OptimizerConfig
from gear_dist.distributed import collectives
from gear_dist.distributed.device import choose_precision, place
from gear_dist.errors import ConfigError
from gear_dist.inference.weights import LECAM_PREFIX, PROJECTORS_PREFIX, NetworkStates
from gear_dist.models.discriminator.patchgan import build_discriminator
from gear_dist.models.generator import build_aligned_generator, build_generator
from gear_dist.models.tokenizers import Tokenizer, build_tokenizer
from gear_dist.training.compute_dtypes import check_compute_dtypes
from gear_dist.training.ema import ExponentialMovingAverage
from gear_dist.training.engine import TrainingEngine
from gear_dist.training.engine_state import (
    engine_shards,
    load_optimizer_metadata,
    optimizer_metadata,
)
from gear_dist.training.stages import AVERAGED, TRAINED, StageName


class Networks:
    """Engines of the networks that a stage trains, and the frozen tokenizer where it does not.

    Attributes:
        precision: 'bf16' or 'fp32'.
        engines: by network name.
        averages: exponential moving averages, by network name.
        frozen_tokenizer: the tokenizer of the generator stage, else None.
    """

    def __init__(
        self,
        stage: StageName,
        modules: dict[str, nn.Module],
        states: NetworkStates,
        *,
        engine: EngineConfig,
        optimizer: OptimizerConfig,
        world_size: int,
        device: torch.device,
    ):
        """Take the stage's networks, with the weights that earlier stages have left.

        Args:
            modules: all of the run, new: see `build_modules`.
            states: what the stage before left (see `averaged_state_dicts`); networks that are
                missing there stay as they are.
        """
        self.device = device
        self.precision = choose_precision(engine.precision, device)
        self.engines: dict[str, TrainingEngine] = {}
        self.averages: dict[str, ExponentialMovingAverage] = {}
        self.frozen_tokenizer: Tokenizer | None = None
        self._optimizer = optimizer
        for name, module in modules.items():
            if name in states:
                load_network(module, states[name])
        if stage == "generator":
            tokenizer = place(modules["tokenizer"], device).eval().requires_grad_(False)
            assert isinstance(tokenizer, Tokenizer)
            self.frozen_tokenizer = tokenizer
        for name in TRAINED[stage]:
            self.engines[name] = TrainingEngine(
                name,
                modules[name],
                engine,
                optimizer,
                world_size=world_size,
                device=device,
                bf16_weights=name == "generator",
            )
            if name in AVERAGED:
                average = ExponentialMovingAverage(self.engines[name], optimizer.ema_decay)
                self.averages[name] = average

    @torch.no_grad()
    def frozen_indices(self, images: Tensor) -> Tensor:
        """Indices (B, L) by the frozen tokenizer, in the precision that the joint stage has."""
        assert self.frozen_tokenizer is not None
        bf16 = self.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            return self.frozen_tokenizer.encode(images)

    def take_compute_dtypes(self) -> dict[str, dict[str, str]]:
        """What the trained networks computed in, once, after their first step; see `ComputeDtypes`.

        Raises:
            ConfigError: it is not what engine.precision asks for.
        """
        taken = {name: engine.compute_dtypes.take() for name, engine in self.engines.items()}
        check_compute_dtypes(self.precision, taken)
        return {name: dtypes for name, dtypes in taken.items() if dtypes}

    def learning_rate(self, name: str) -> float:
        """The network's base rate."""
        return getattr(self._optimizer, f"{name}_lr")

    def step(self, rate_factor: float) -> None:
        """Step every engine, after all backwards of a micro-batch."""
        for name, engine in self.engines.items():
            engine.step(self.learning_rate(name) * rate_factor)

    def update_averages(self) -> None:
        """Once a step, after it."""
        for average in self.averages.values():
            average.update()

    def averaged_state_dicts(self) -> NetworkStates:
        """What the next stage starts from, and what users use: averages where kept. Collective.

        A stage so starts from what the one before would publish.
        """
        states = {
            name: self.averages[name].full_state() if name in self.averages else engine.full_state()
            for name, engine in self.engines.items()
        }
        if self.frozen_tokenizer is not None:
            frozen = self.frozen_tokenizer.state_dict()
            states["tokenizer"] = {key: value.detach().cpu() for key, value in frozen.items()}
        return states

    def shards(self) -> Iterator[TensorShard]:
        """This rank's share of everything that must survive, as views."""
        for name, engine in self.engines.items():
            average = self.averages.get(name)
            yield from engine_shards(engine, average.averages if average else None)
        if self.frozen_tokenizer is not None:
            for key, value in self.frozen_tokenizer.state_dict().items():
                yield replicated(f"tokenizer.frozen.{key}", value)

    def state_dict(self) -> dict[str, Any]:
        """What `shards` leaves out, and the whole shapes: plain data, alike on all ranks."""
        shapes = {name: engine.shapes() for name, engine in self.engines.items()}
        if self.frozen_tokenizer is not None:
            frozen = self.frozen_tokenizer.state_dict()
            shapes["tokenizer"] = {key: list(value.shape) for key, value in frozen.items()}
        optimizers = {name: optimizer_metadata(engine) for name, engine in self.engines.items()}
        return {"optimizers": optimizers, "shapes": shapes}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any], reader: CheckpointReader) -> None:
        """Load a checkpoint of the same stage: the state and `reader`'s shards. Collective.

        Raises:
            DataError: it lacks something.
        """
        for name, metadata in state["optimizers"].items():
            load_optimizer_metadata(self.engines[name], metadata)
        reader.fill(self.shards(), likely=collectives.rank() / collectives.world_size())
        for engine in self.engines.values():
            engine.sync_low_precision_params()

    def buffers(self) -> list[Tensor]:
        """Buffers of the trained networks, such as batch statistics; live."""
        return [b for engine in self.engines.values() for b in engine.module.buffers()]

    def skip_next_step(self, skip: bool) -> None:
        """Whether the next `step` moves nothing, in any network."""
        for engine in self.engines.values():
            engine.skip_next_step(skip)

    def close(self) -> None:
        """Release all engines."""
        for engine in self.engines.values():
            engine.close()


def build_modules(config: RunConfig, teacher_widths: tuple[int, ...]) -> dict[str, nn.Module]:
    """All three networks, at random in one fixed order: the seed gives the same in every stage.

    Args:
        teacher_widths: feature widths of the teachers, one projector each.
    """
    tokenizer = build_tokenizer(
        config.tokenizer,
        soft_temperature=config.alignment.soft_temperature,
        kernels=config.engine.kernels,
    )
    return {
        "tokenizer": tokenizer,
        "discriminator": build_discriminator(config.discriminator),
        "generator": build_aligned_generator(
            build_generator(config), config.alignment, teacher_widths
        ),
    }


def load_network(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a whole network; a generator may come without projectors, which then are new, or with
    projectors that no teacher needs, and a discriminator without the averages of LeCam.

    Raises:
        ConfigError: the projectors are of other teachers.
    """
    anew = module.state_dict()
    own = {k: v for k, v in anew.items() if k.startswith(PROJECTORS_PREFIX)}
    given = {k: v.shape for k, v in state.items() if k.startswith(PROJECTORS_PREFIX)}
    shapes = {key: value.shape for key, value in own.items()}
    if own and given and given != shapes:
        raise ConfigError(
            "stages.init_from: its projectors do not fit this teacher and "
            f"alignment.projector_width ({_widths(given)} there, {_widths(shapes)} here): leave "
            "projectors out of stages.init_networks"
        )
    if not own or not given:
        state = {key: value for key, value in state.items() if key not in given} | own
    averages = {k: v for k, v in anew.items() if k.startswith(LECAM_PREFIX)}
    module.load_state_dict(averages | state)


def _widths(shapes: dict[str, torch.Size]) -> str:
    """The sizes of projectors, short."""
    return ", ".join("x".join(map(str, shape)) for shape in shapes.values() if len(shape) > 1)
