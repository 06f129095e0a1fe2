"""The decoding engine: batches of conditions and seeds to indices.

Shapes: B images, L tokens, P positions of the condition.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gear_dist.config.models import SamplingConfig
from gear_dist.errors import ConfigError, NumericError
from gear_dist.inference.decoding.guidance import check_sampling, count_guided, guidance_scales
from gear_dist.inference.decoding.torch_step import BUCKET, TorchStep
from gear_dist.inference.decoding.weights import DecoderWeights, pack_weights
from gear_dist.inference.draws import Filters
from gear_dist.inference.seeds import token_uniforms
from gear_dist.models.generator.conditioning import ClassCondition, Condition
from gear_dist.models.generator.prefix import Prefix, join_prefixes
from gear_dist.models.generator.transformer import Generator

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CPU_TILE = 8
"""Images that are decoded at a time in torch operations on the CPU."""


class DecodingEngine:
    """Decodes with one generator, whose weights it takes over (see `pack_weights`)."""

    def __init__(self, generator: Generator):
        self.generator = generator.eval()
        self.device = generator.norm.weight.device
        self._weights: DecoderWeights | None = None
        self._step: tuple[tuple[Any, ...], TorchStep] | None = None

    @torch.no_grad()
    def generate(
        self, condition: Condition, seeds: Sequence[int], sampling: SamplingConfig
    ) -> Iterator[Tensor]:
        """Indices (B, L) on the device of all images, a batch after another.

        Raises:
            ConfigError: what this generator or device cannot do. NumericError: logits are not
                finite.
        """
        self._check(condition, sampling)
        size = self._batch_size(condition, sampling)
        parts: Iterator[Condition] = condition.split(size)
        for number, part in enumerate(parts):
            part_seeds = list(seeds[number * size : (number + 1) * size])
            count = part.num_images
            if self._fills(sampling):
                part, part_seeds = part.padded(size), part_seeds + [0] * (size - count)
            yield self._decode(part.to(self.device), part_seeds, sampling)[:count]

    def _check(self, condition: Condition, sampling: SamplingConfig) -> None:
        generator = self.generator
        check_sampling(sampling, generator.config, generator.output.out_features)
        condition.check(generator.config)
        if sampling.cache_dtype == "fp8" and self.device.type != "cuda":
            raise ConfigError(
                f"sampling.cache_dtype=fp8 is for CUDA, and this is {self.device.type}: use auto"
            )
        dtype = self._dtype(sampling)
        if self._weights is None:
            self._weights = pack_weights(generator, dtype)
        elif self._weights.head_KD.dtype != dtype:
            raise ConfigError(
                f"sampling.dtype={sampling.dtype}: the weights were rounded to "
                f"{self._weights.head_KD.dtype} when this model sampled first: load it again"
            )

    def _dtype(self, sampling: SamplingConfig) -> torch.dtype:
        if sampling.dtype == "auto":
            on_cuda = self.device.type == "cuda"
            return torch.bfloat16 if on_cuda else self.generator.norm.weight.dtype
        return DTYPES[sampling.dtype]

    def _batch_size(self, condition: Condition, sampling: SamplingConfig) -> int:
        if self.device.type != "cpu" or sampling.fixed_batches:
            return sampling.batch
        # Captions of other lengths would move a caption's places, and so the order of sums.
        return min(sampling.batch, CPU_TILE if isinstance(condition, ClassCondition) else 1)

    def _fills(self, sampling: SamplingConfig) -> bool:
        """Whether each batch is filled up: products of other shapes round otherwise."""
        return sampling.fixed_batches or self.device.type == "cpu"

    def _decode(
        self, condition: Condition, seeds: Sequence[int], sampling: SamplingConfig
    ) -> Tensor:
        """Indices (B, L) of one batch."""
        scales = guidance_scales(sampling, self.generator.num_tokens)
        num_guided = count_guided(scales)
        batch = condition.num_images
        if num_guided:
            condition = condition.with_null(self.generator.config)
        prefix = self._read_condition(condition, batch, alone=self._fills(sampling))
        step = self._step_for(batch, prefix, sampling)
        uniforms_LB = torch.from_numpy(token_uniforms(seeds, len(scales)).T)
        step.begin(prefix, uniforms_LB, scales, Filters.of(sampling, self.device))
        for token in range(1, len(scales)):
            step.advance(token, guided=token < num_guided)
        if not step.all_finite():
            raise NumericError(
                "the generator's logits are not finite: its weights are damaged, or too large for "
                f"sampling.dtype={sampling.dtype}"
            )
        return step.result()

    def _read_condition(self, condition: Condition, batch: int, *, alone: bool) -> Prefix:
        """The prefix of all rows.

        Args:
            condition: of R rows.
            batch: images B: all rows from there on are null halves.
            alone: whether each row goes through the blocks by itself, so that its bits do not
                depend on how long the others are.
        """
        if alone:
            parts: list[Condition] = list(condition.split(1))
            found = [self.generator.read_condition(part) for part in parts[: batch + 1]]
            prefix = join_prefixes(found[:batch] + found[batch:] * (len(parts) - batch))
        else:
            prefix = self.generator.read_condition(condition)
        if prefix.starts and self.device.type == "cuda":
            # Graphs are captured for one number of positions.
            prefix = prefix.widened(-(-prefix.num_positions // BUCKET) * BUCKET)
        return prefix

    def _step_for(self, batch: int, prefix: Prefix, sampling: SamplingConfig) -> TorchStep:
        """The step of this batch size; the last one is kept, with its cache and its graphs."""
        key = (batch, prefix.num_rows, prefix.num_positions, sampling.cache_dtype, sampling.compile)
        if self._step is None or self._step[0] != key:
            self._step = None  # its cache goes before the next one's comes
            assert self._weights is not None
            step = TorchStep(
                self._weights,
                batch=batch,
                rows=prefix.num_rows,
                prefix_positions=prefix.num_positions,
                cache_dtype=torch.float8_e4m3fn if sampling.cache_dtype == "fp8" else None,
                compile_backend=(
                    "cudagraphs" if sampling.compile and self.device.type == "cuda" else None
                ),
            )
            self._step = key, step
        return self._step[1]
