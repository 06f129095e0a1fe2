"""The decoding engine: batches of conditions and seeds to indices.

Shapes: B images, L tokens, P positions of the condition.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gear_dist.config.models import SamplingConfig
from gear_dist.errors import ConfigError, NumericError
from gear_dist.inference.decoding.guidance import check_sampling, count_guided, guidance_scales
from gear_dist.inference.decoding.native import load_few_rows
from gear_dist.inference.decoding.native_step import NativeStep, NativeWeights, pack_native
from gear_dist.inference.decoding.step import Step
from gear_dist.inference.decoding.torch_step import BUCKET, TorchStep
from gear_dist.inference.decoding.weights import DecoderWeights, pack_weights
from gear_dist.inference.draws import Filters
from gear_dist.inference.seeds import Seed, token_uniforms
from gear_dist.models.generator.conditioning import Condition
from gear_dist.models.generator.prefix import Prefix, join_prefixes
from gear_dist.models.generator.transformer import Generator

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CPU_CACHE_BYTES = 2**31
"""Memory of a cache on the CPU, at most: fewer images at a time change no bits there."""
CPU_TILE = 8
"""Images that are decoded at a time in torch operations on the CPU."""


class DecodingEngine:
    """Decodes with one generator, whose weights it takes over (see `pack_weights`)."""

    def __init__(self, generator: Generator, *, release: bool = False):
        """Packs nothing yet: the first images say in which numbers.

        Args:
            generator: trained.
            release: whether its matrices may be given up where the engine has a layout of its own.
        """
        self.generator = generator.eval()
        self.device = generator.norm.weight.device
        self._release = release and not generator.condition_needs_blocks
        self._dtype: torch.dtype | None = None
        self._weights: DecoderWeights | NativeWeights
        self._step: tuple[tuple[Any, ...], Step] | None = None

    @torch.no_grad()
    def generate(
        self,
        condition: Condition,
        seeds: Sequence[Seed],
        sampling: SamplingConfig,
        *,
        on_token: Callable[[], None] | None = None,
    ) -> Iterator[Tensor]:
        """Indices (B, L) on the device of all images, a batch after another.

        Args:
            condition: of all images.
            seeds: of all images.
            sampling: settings.
            on_token: called after each token of a batch; what it raises ends the work.

        Raises:
            ConfigError: what this generator or device cannot do. NumericError: logits are not
                finite.
        """
        self._prepare(condition, sampling)
        size = self._batch_size(sampling)
        parts: Iterator[Condition] = condition.split(size)
        for number, part in enumerate(parts):
            part_seeds = list(seeds[number * size : (number + 1) * size])
            count = part.num_images
            if self._fills(sampling):
                part, part_seeds = part.padded(size), part_seeds + [0] * (size - count)
            yield self._decode(part.to(self.device), part_seeds, sampling, on_token)[:count]

    def _prepare(self, condition: Condition, sampling: SamplingConfig) -> None:
        generator = self.generator
        check_sampling(sampling, generator.config, generator.output.out_features)
        condition.check(generator.config)
        if sampling.cache_dtype == "fp8" and self.device.type != "cuda":
            raise ConfigError(
                f"sampling.cache_dtype=fp8 is for CUDA, and this is {self.device.type}: use auto"
            )
        dtype = self._wanted_dtype(sampling)
        if self._dtype is None:
            self._weights, self._dtype = self._pack(dtype), dtype
        elif self._dtype != dtype:
            raise ConfigError(
                f"sampling.dtype={sampling.dtype}: the weights were rounded to {self._dtype} when "
                "this model sampled first: load it again"
            )

    def _pack(self, dtype: torch.dtype) -> DecoderWeights | NativeWeights:
        weights = pack_weights(self.generator, dtype)
        if self.device.type != "cpu" or dtype != torch.float32:
            return weights
        library = load_few_rows()
        if library is None:
            return weights
        return pack_native(weights, library, release=self._release)

    def _wanted_dtype(self, sampling: SamplingConfig) -> torch.dtype:
        if sampling.dtype != "auto":
            return DTYPES[sampling.dtype]
        if self.device.type == "cuda":
            return torch.bfloat16
        return self._dtype or self.generator.norm.weight.dtype

    @property
    def _rows_are_alike(self) -> bool:
        """Whether a row's bits do not depend on how many others there are."""
        return isinstance(self._weights, NativeWeights)

    def _batch_size(self, sampling: SamplingConfig) -> int:
        if self.device.type != "cpu" or sampling.fixed_batches:
            return sampling.batch
        if self._rows_are_alike:
            return min(sampling.batch, max(1, CPU_CACHE_BYTES // self._cache_bytes()))
        # Captions of other lengths would move a caption's places, and so the order of sums.
        return 1 if self.generator.condition_needs_blocks else min(sampling.batch, CPU_TILE)

    def _cache_bytes(self) -> int:
        """Of an image with guidance, in fp32, but for its condition."""
        config = self.generator.config
        return 2 * 2 * config.num_layers * self.generator.num_tokens * config.width * 4

    def _fills(self, sampling: SamplingConfig) -> bool:
        """Whether each batch is filled up: products of other shapes round otherwise."""
        if self._rows_are_alike:
            return False
        return sampling.fixed_batches or self.device.type == "cpu"

    def _decode(
        self,
        condition: Condition,
        seeds: Sequence[Seed],
        sampling: SamplingConfig,
        on_token: Callable[[], None] | None,
    ) -> Tensor:
        """Indices (B, L) of one batch."""
        scales = guidance_scales(sampling, self.generator.num_tokens)
        num_guided = count_guided(scales)
        batch = condition.num_images
        if num_guided:
            condition = condition.with_null(self.generator.config)
        prefix = self._read_condition(condition, batch, sampling)
        step = self._step_for(batch, prefix, sampling)
        uniforms_LB = torch.from_numpy(token_uniforms(seeds, len(scales)).T)
        step.begin(prefix, uniforms_LB, scales, Filters.of(sampling, self.device))
        for token in range(1, len(scales)):
            step.advance(token, guided=token < num_guided)
            if on_token:
                on_token()
        if not step.all_finite():
            raise NumericError(
                "the generator's logits are not finite: its weights are damaged, or too large for "
                f"sampling.dtype={sampling.dtype}"
            )
        return step.result()

    def _read_condition(self, condition: Condition, batch: int, sampling: SamplingConfig) -> Prefix:
        """The prefix of all rows, of which those from `batch` on are null halves."""
        generator = self.generator
        alone = self._rows_are_alike or self._fills(sampling)
        if alone and generator.condition_needs_blocks:
            # By itself, so that a caption's bits do not depend on the others' lengths.
            parts: list[Condition] = list(condition.split(1))
            found = [generator.read_condition(part) for part in parts[: batch + 1]]
            prefix = join_prefixes(found[:batch] + found[batch:] * (len(parts) - batch))
        else:
            prefix = generator.read_condition(condition)
        if prefix.starts and self.device.type == "cuda":
            # Graphs are captured for one number of positions.
            prefix = prefix.widened(-(-prefix.num_positions // BUCKET) * BUCKET)
        return prefix

    def _step_for(self, batch: int, prefix: Prefix, sampling: SamplingConfig) -> Step:
        """The step of this batch size; the last one is kept, with its cache and its graphs."""
        key = (batch, prefix.num_rows, prefix.num_positions, torch.get_num_threads()) + (
            sampling.cache_dtype,
            sampling.compile,
        )
        if self._step is None or self._step[0] != key:
            self._step = None  # its cache goes before the next one's comes
            self._step = key, self._make_step(batch, prefix, sampling)
        return self._step[1]

    def _make_step(self, batch: int, prefix: Prefix, sampling: SamplingConfig) -> Step:
        rows, positions = prefix.num_rows, prefix.num_positions
        if isinstance(self._weights, NativeWeights):
            return NativeStep(self._weights, batch=batch, rows=rows, most_visible=positions)
        on_cuda = self.device.type == "cuda"
        return TorchStep(
            self._weights,
            batch=batch,
            rows=rows,
            prefix_positions=positions,
            cache_dtype=torch.float8_e4m3fn if sampling.cache_dtype == "fp8" else None,
            compile_backend="cudagraphs" if sampling.compile and on_cuda else None,
        )
