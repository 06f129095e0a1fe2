"""A trained tokenizer and generator in use: reconstruction and sampling, without engines.

Shapes: B images, H x W pixels, L tokens.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from gear_dist.config.models import SamplingConfig
from gear_dist.config.schema import RunConfig
from gear_dist.data.pixels import to_model_range, to_u8
from gear_dist.errors import ConfigError, DataError
from gear_dist.inference.decoding.engine import DecodingEngine
from gear_dist.inference.model_folder import ModelFolder
from gear_dist.inference.seeds import Seed, prompt_bytes
from gear_dist.inference.text_weights import load_checked_encoder
from gear_dist.inference.weights import NetworkStates, check_fit, read_weights
from gear_dist.models.generator import Condition, Generator, TextCondition, build_generator
from gear_dist.models.text_encoders.base import TextEncoder
from gear_dist.models.tokenizers import Tokenizer, build_tokenizer

CHUNK = 64
CHUNK_PIXELS = 2**19
"""Pixels that go through a tokenizer at a time: the public ones take 2 kB a pixel and more."""


class GearPipeline:
    """A tokenizer and perhaps a generator, in evaluation mode."""

    def __init__(self, config: RunConfig, states: NetworkStates, device: torch.device):
        """Args: states: published networks by name (see `weights.split_states`)."""
        self.config = config
        self.device = device
        self._tokenizer_chunk = min(CHUNK, max(1, CHUNK_PIXELS // config.data.image_size**2))
        self.tokenizer: Tokenizer = build_tokenizer(
            config.tokenizer,
            soft_temperature=config.alignment.soft_temperature,
            kernels=config.engine.kernels,
        )
        self.tokenizer.load_state_dict(states["tokenizer"])
        self.tokenizer.to(device).eval()
        self.text_encoder: TextEncoder | None = None
        self.generator: Generator | None = None
        if "generator" in states:
            self.generator = build_generator(config)
            self.generator.load_state_dict(states["generator"])
            self.generator.to(device).eval()
        self._engine: DecodingEngine | None = None

    @classmethod
    def load(cls, model: ModelFolder, device: torch.device) -> "GearPipeline":
        """Read a run's or a model folder's weights.

        Raises:
            DataError: it has no tokenizer, or its weights do not fit its configuration.
        """
        states = {"tokenizer": read_weights(model.require("tokenizer"))}
        if "generator" in model.weights:
            states["generator"] = read_weights(model.weights["generator"])
        for name, state in states.items():
            check_fit(name, state, model.config, str(model.weights[name]))
        pipeline = cls(model.config, states, device)
        if pipeline.generator is not None and model.config.generator.condition == "text":
            pipeline.text_encoder = load_checked_encoder(model, device)
        return pipeline

    def read_prompts(self, prompts: Sequence[str]) -> TextCondition:
        """The condition of images of these prompts; an empty one is the null condition.

        Raises:
            ConfigError: the generator is not text-to-image, or a prompt is no text.
        """
        if self.text_encoder is None:
            raise ConfigError(
                "this model generates images of classes, not of prompts: name classes instead"
            )
        for prompt in prompts:
            prompt_bytes(prompt)  # refuses what no text encoder takes
        return self.text_encoder(prompts)

    @torch.no_grad()
    def encode(self, images_u8: Tensor) -> Tensor:
        """Indices (B, L), int64 on the CPU, of uint8 images (B, 3, H, W)."""
        parts = [
            self.tokenizer.encode(to_model_range(chunk.to(self.device)))
            for chunk in images_u8.split(self._tokenizer_chunk)
        ]
        return torch.cat(parts).cpu()

    @torch.no_grad()
    def reconstruct(self, images_u8: Tensor) -> Tensor:
        """uint8 images (B, 3, H, W) through the tokenizer and back, uint8 on the CPU."""
        parts = [
            self.tokenizer(to_model_range(chunk.to(self.device))).reconstruction
            for chunk in images_u8.split(self._tokenizer_chunk)
        ]
        return to_u8(torch.cat(parts))

    @torch.no_grad()
    def decode(self, indices_BL: Tensor, *, fixed_batches: bool = False) -> Tensor:
        """uint8 images (B, 3, H, W) on the CPU, of indices (B, L) on any device.

        On the CPU one by one: convolutions of several images round otherwise than of one.

        Args:
            indices_BL: int64.
            fixed_batches: fill the last of the batches that go through the tokenizer up, so that
                all have one shape.
        """
        size = 1 if self.device.type == "cpu" else self._tokenizer_chunk
        parts = []
        for chunk in indices_BL.to(self.device).split(size):
            missing = size - len(chunk) if fixed_batches else 0
            filled = torch.cat([chunk, chunk[-1:].expand(missing, -1)]) if missing else chunk
            parts.append(to_u8(self.tokenizer.decode(filled)[: len(chunk)]))
        return torch.cat(parts)

    def generate(
        self,
        condition: Condition,
        seeds: Sequence[Seed],
        sampling: SamplingConfig | None = None,
        *,
        on_batch: Callable[[int], None] | None = None,
        on_token: Callable[[], None] | None = None,
    ) -> Tensor:
        """An image for each condition and its seed, uint8 (B, 3, H, W) on the CPU.

        Args:
            condition: of B images.
            seeds: of B images, whole numbers of 64 bits (see `seeds.derive_seeds`) or mixes of two.
            sampling: default: the configuration's.
            on_batch: told of the images finished so far, after each internal batch; what it raises
                ends the work.
            on_token: called after each token of a batch; what it raises ends the work.

        Raises:
            DataError: the run has no generator yet.
            ConfigError: a class or seed is out of range, or guidance is asked without a null class.
        """
        images: list[Tensor] = []
        finished = 0
        sampling = sampling or self.config.sampling
        for indices in self._generate_batches(condition, seeds, sampling, on_token):
            images.append(self.decode(indices, fixed_batches=sampling.fixed_batches))
            finished += len(indices)
            if on_batch:
                on_batch(finished)
        return torch.cat(images)

    def generate_indices(
        self, condition: Condition, seeds: Sequence[Seed], sampling: SamplingConfig | None = None
    ) -> Tensor:
        """As `generate`, the indices (B, L), int64 on the CPU."""
        return torch.cat(
            [part.cpu() for part in self._generate_batches(condition, seeds, sampling)]
        )

    def _generate_batches(
        self,
        condition: Condition,
        seeds: Sequence[Seed],
        sampling: SamplingConfig | None,
        on_token: Callable[[], None] | None = None,
    ) -> Iterator[Tensor]:
        if self.generator is None:
            raise DataError(
                "no generator found: the run has not trained one yet, or none was imported"
            )
        sampling = sampling or self.config.sampling
        assert len(seeds) == condition.num_images, "a seed for each image"
        if self._engine is None:
            self._engine = DecodingEngine(self.generator, release=True)
        yield from self._engine.generate(condition, seeds, sampling, on_token=on_token)
