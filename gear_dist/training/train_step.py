"""One optimizer step of a run: its micro-batches on the device, then the update of all networks."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gear_dist.config.schema import RunConfig
from gear_dist.data.loader import Batch
from gear_dist.data.pixels import to_model_range
from gear_dist.distributed.device import choose_precision, place
from gear_dist.losses.perceptual import load_lpips
from gear_dist.models.generator import ClassCondition, Condition
from gear_dist.models.teachers import Teacher, load_teachers
from gear_dist.training.conditions import load_conditions
from gear_dist.training.lr_schedule import rate_factor
from gear_dist.training.nan_guard import NanGuard
from gear_dist.training.networks import Networks
from gear_dist.training.stages import Stage
from gear_dist.training.steps import Metrics, MicroBatch, train_micro_batch


class StepResult(NamedTuple):
    """Result of one optimizer step."""

    stop: bool
    """Whether any rank was asked to stop."""
    micro_batches: list[tuple[Metrics, Tensor]]
    """Detached metrics and indices (B, L) of each micro-batch; none where the step was skipped."""


class TrainStep:
    """Takes steps, with the frozen networks that losses need.

    Attributes:
        teachers: none where nothing is aligned.
        conditions: of the generator, with the text encoder where it takes captions.
    """

    def __init__(self, config: RunConfig, device: torch.device):
        """Load the frozen networks.

        Raises:
            ConfigError: their weights are not reachable.
        """
        self._config = config
        self._device = device
        self._lpips = load_lpips(config.losses) if config.stages.has_tokenizer else None
        if self._lpips is not None:
            place(self._lpips, device)
        teachers: list[Teacher] = []
        if config.alignment.enabled and config.stages.has_generator:
            teachers = load_teachers(
                config.teachers, image_size=config.data.image_size, grid_size=config.grid_size
            )
        self.conditions = load_conditions(config, device)
        self.teachers = [place(teacher, device) for teacher in teachers]

    def run(
        self,
        networks: Networks,
        stage: Stage,
        step: int,
        batches: Iterator[Batch],
        *,
        guard: NanGuard,
        stop_requested: Callable[[], bool],
    ) -> StepResult:
        """Forward, backward and update; no update where something is not finite. Collective.

        Args:
            networks: of the stage.
            stage: the step's.
            step: counted over the whole run, from 0.
            batches: as many micro-batches as the step accumulates are taken.
            guard: decides whether the step counts.
            stop_requested: asked once, when the step is computed.
        """
        factor = rate_factor(self._config.optimizer, stage, step)
        accumulation = self._config.engine.accumulation
        stop, micro_batches = False, []
        guard.begin(networks)
        for i, batch in enumerate(itertools.islice(batches, accumulation)):
            metrics, indices = train_micro_batch(
                networks, self._to_device(batch, stage), self._config, step, self._lpips
            )
            guard.add(metrics)
            micro_batches.append((metrics, indices))
            if i + 1 == accumulation:
                stop = guard.check(networks, stop_requested())
            networks.step(factor)
        if guard.num_consecutive > 0:
            return StepResult(stop, [])
        networks.update_averages()
        return StepResult(stop, micro_batches)

    @torch.no_grad()
    def _to_device(self, batch: Batch, stage: Stage) -> MicroBatch:
        images = to_model_range(batch.images.to(self._device, non_blocking=True))
        if self._device.type == "cuda":
            images = images.contiguous(memory_format=torch.channels_last)
        condition: Condition = ClassCondition(batch.labels)  # no generator reads it
        if stage.name != "tokenizer":
            condition = self.conditions.of(batch)
        drop = (batch.cfg_dropout_rand < self._config.generator.class_dropout).tolist()
        features = [] if stage.name == "tokenizer" else self._features(images)
        return MicroBatch(images, condition, features, drop)

    def _features(self, images: Tensor) -> Sequence[Tensor]:
        bf16 = choose_precision(self._config.engine.precision, self._device) == "bf16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=bf16):
            return [teacher(images) for teacher in self.teachers]
