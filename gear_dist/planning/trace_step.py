"""What each update of a step costs: the training step itself, run on tensors without memory."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward

from gear_dist.config.models import GeneratorConfig
from gear_dist.config.schema import RunConfig
from gear_dist.config.training import EngineConfig
from gear_dist.distributed.device import choose_precision
from gear_dist.models.generator import ClassCondition, Condition, TextCondition
from gear_dist.models.teachers import Teacher
from gear_dist.models.text_encoders.base import EncoderSize
from gear_dist.models.tokenizers import Tokenizer
from gear_dist.planning.cost_model import (
    LiveStorages,
    OperationCost,
    OperationTally,
    saved_for_backward,
)
from gear_dist.planning.cuda_numerics import CudaNumerics
from gear_dist.planning.fake_models import build_skeleton, fake_tensors, measure_encoder
from gear_dist.planning.hardware import Rates
from gear_dist.planning.memory import ActivationBytes
from gear_dist.training.engine import TrainingEngine, autocast_forward
from gear_dist.training.networks import Networks
from gear_dist.training.stages import TRAINED, StageName
from gear_dist.training.steps import MicroBatch, train_micro_batch

_CPU = torch.device("cpu")
CAPTION_TOKENS = 60
"""Tokens of every caption; GPIC's have about so many on average."""


class StageCost(NamedTuple):
    """One micro-batch of one stage on one worker."""

    passes: dict[str, OperationCost]
    """By pass, such as 'tokenizer forward', in the order of the step."""
    activations: dict[str, ActivationBytes]
    """By update, named after the network that it trains."""

    @property
    def total(self) -> OperationCost:
        """All passes together."""
        total = OperationCost()
        for cost in self.passes.values():
            total = total.plus(cost)
        return total


class _Meter:
    """Readings of one tally, by pass and by update."""

    def __init__(self, tally: OperationTally, saved: LiveStorages):
        self.tally = tally
        self.saved = saved
        self.passes: dict[str, OperationCost] = {}
        self.activations: dict[str, ActivationBytes] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        before = self.tally.cost
        yield
        spent = self.tally.cost.minus(before)
        self.passes[name] = self.passes.get(name, OperationCost()).plus(spent)

    def wrap(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*args: Any) -> Any:
            with self.measure(name):
                return forward(*args)

        return measured

    @contextmanager
    def update(self, name: str) -> Iterator[None]:
        """Around the backward that ends an update."""
        kept = self.saved.now
        with self.measure(f"{name} backward"):
            yield
        memory = self.tally.memory
        self.activations[name] = ActivationBytes(kept, max(0, memory.peak - kept))
        memory.restart_peak()


class _Network:
    """Takes the place of a DeepSpeed engine: one worker, no optimizer."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __call__(self, *args: Any) -> Any:
        return self.module(*args)

    def backward(self, loss: Tensor) -> None:
        # What torch offers for this steps out of `CudaNumerics`, so recomputations would, too.
        seed = (torch.ones_like(loss),)
        options = {"allow_unreachable": True, "accumulate_grad": True}
        _engine_run_backward((loss,), seed, False, False, (), **options)


class _MeteredEngine(TrainingEngine):
    """The passes of an engine, measured. Gradients are dropped as they come."""

    def __init__(self, name: str, module: nn.Module, owner: "_MeteredNetworks", *, autocast: bool):
        self.name = name
        self.device = _CPU
        if autocast:
            autocast_forward(module, _CPU)
        self._engine = _Network(module.train())
        self._owner = owner
        for parameter in module.parameters():
            parameter.register_post_accumulate_grad_hook(_drop_gradient)

    def __call__(self, *args: Any) -> Any:
        with self._owner.meter.measure(f"{self.name} forward"):
            return super().__call__(*args)

    @contextmanager
    def frozen(self, *, training: bool) -> Iterator[Callable[..., Any]]:
        with super().frozen(training=training) as forward:
            yield self._owner.meter.wrap(f"{self.name} frozen forward", forward)

    def backward(self, loss: Tensor) -> None:
        with self._owner.meter.update(self.name):
            super().backward(loss)


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


class _MeteredNetworks(Networks):
    """A stage's networks as the step takes them.

    Attributes:
        meter: takes the readings; set before the step runs.
    """

    meter: _Meter

    def __init__(self, stage: StageName, engine: EngineConfig, modules: dict[str, nn.Module]):
        self.device = _CPU
        self.precision = choose_precision(engine.precision, _CPU)
        self.engines = {}
        self.frozen_tokenizer = None
        if stage == "generator":
            tokenizer = modules["tokenizer"].eval().requires_grad_(False)
            assert isinstance(tokenizer, Tokenizer)
            self.frozen_tokenizer = tokenizer
        bf16 = self.precision == "bf16"
        for name in TRAINED[stage]:
            module = modules[name]
            bf16_weights = bf16 and name == "generator" and engine.zero_stage > 0
            if bf16_weights:
                _to_bf16(module)
            autocast = bf16 and not bf16_weights
            self.engines[name] = _MeteredEngine(name, module, self, autocast=autocast)

    def frozen_indices(self, images: Tensor) -> Tensor:
        with self.meter.measure("tokenizer frozen forward"):
            return super().frozen_indices(images)


def _to_bf16(module: nn.Module) -> None:
    """`module.to(torch.bfloat16)` swaps tensors, which fake ones do not bear."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(parameter.detach().to(torch.bfloat16)))


def count_stage(
    stage: StageName, config: RunConfig, *, images: int, on_cuda: bool, rates: Rates
) -> StageCost:
    """Run one micro-batch of `images` images without memory, and count.

    `engine.precision` must be resolved. Triton's kernels count as the blocked ones.

    Raises:
        ConfigError: a teacher whose size cannot be told.
    """
    if config.engine.kernels != "reference":
        engine = dataclasses.replace(config.engine, kernels="torch")
        config = dataclasses.replace(config, engine=engine)
    bf16 = config.engine.precision == "bf16"
    with fake_tensors():
        built = build_skeleton(config)
        # Weights in bf16 are other tensors: they are made before what is there is noted.
        networks = _MeteredNetworks(stage, config.engine, built.modules)
        weights = built.weights()
        tally = OperationTally(rates, weights)
        numerics = CudaNumerics(bf16) if on_cuda else nullcontext()
        with numerics, saved_for_backward(weights) as saved, tally:
            meter = networks.meter = _Meter(tally, saved)
            lpips = meter.wrap("lpips forward", built.lpips) if built.lpips else None
            teachers = built.teachers if stage != "tokenizer" else []
            side = config.data.image_size
            batch = _batch(images, side, config.generator, teachers, meter, bf16=bf16)
            adversarial_from = config.discriminator.start_step
            train_micro_batch(networks, batch, config, adversarial_from, lpips)  # type: ignore[arg-type]
    if stage != "tokenizer":
        with fake_tensors():
            size = measure_encoder(config).size
        if cost := _encoder_cost(size, images, rates, on_cuda=on_cuda):
            meter.passes["text encoder forward"] = cost
    return StageCost(meter.passes, meter.activations)


def caption_flops(size: EncoderSize) -> int:
    """Of one caption of CAPTION_TOKENS; a multiply-add is two."""
    per_token = size.multiplied + 2 * CAPTION_TOKENS * size.attention_width * size.blocks
    return 2 * CAPTION_TOKENS * per_token


def _encoder_cost(
    size: EncoderSize, images: int, rates: Rates, *, on_cuda: bool
) -> OperationCost | None:
    """The forward of a micro-batch's captions; None: no encoder runs.

    Weights are read once; what is read and written between products is not counted.
    """
    if not size.parameters:
        return None
    dtype = torch.bfloat16 if on_cuda else torch.float32
    flops = images * caption_flops(size)
    traffic = size.multiplied * dtype.itemsize
    rate = rates.flops_per_s(dtype, convolution=False)
    return OperationCost(flops, traffic, max(flops / rate, traffic / rates.memory))


def _condition(images: int, generator: GeneratorConfig) -> Condition:
    if generator.condition == "class":
        return ClassCondition(torch.zeros(images, dtype=torch.int64))
    features_MF = torch.zeros(images * CAPTION_TOKENS, generator.text_width)
    lengths, hidden = (CAPTION_TOKENS,) * images, (False,) * images
    return TextCondition(features_MF, lengths, hidden, features_MF[:1], False)


def _batch(
    images: int,
    side: int,
    generator: GeneratorConfig,
    teachers: list[Teacher],
    meter: _Meter,
    *,
    bf16: bool,
) -> MicroBatch:
    """As `Trainer` prepares it: images, conditions, the teachers' features."""
    pixels = torch.zeros(images, 3, side, side)
    condition = _condition(images, generator)
    with meter.measure("teacher forward"), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        features = [teacher(pixels) for teacher in teachers]
    return MicroBatch(pixels, condition, features, [False] * images)
