"""The step of one token in torch operations: eager on the CPU, compiled to CUDA graphs on CUDA.

All that changes from token to token lies in buffers at fixed addresses, the place of the token
included, so a step has no input, no output, no allocation that outlives it, and nothing that the
host waits for.

Shapes: B images, R rows (B, or 2 B: class halves, then null halves), L tokens, S positions of the
cache, H heads of width h, D model width, K codes, n layers.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gear_dist.inference.decoding.weights import DecoderWeights, LayerWeights
from gear_dist.inference.draws import Filters, draw_codes
from gear_dist.models.generator.prefix import Prefix
from gear_dist.models.generator.rotary import at_least_fp32
from gear_dist.models.generator.transformer import NORM_EPS

COMPILE_CACHE = "~/.cache/gear-dist/compiled"
"""Unless TORCHINDUCTOR_CACHE_DIR names another folder."""
BUCKET = 64
"""Compiled attention reads the cache in multiples of this: one graph each."""


class TorchStep(nn.Module):
    """Decodes one batch size; a `Step`."""

    def __init__(
        self,
        weights: DecoderWeights,
        *,
        batch: int,
        rows: int,
        prefix_positions: int,
        cache_dtype: torch.dtype | None = None,
        compile_backend: str | None = None,
    ):
        """Allocates cache and buffers.

        Args:
            weights: of the generator.
            batch: images B.
            rows: R.
            prefix_positions: P.
            cache_dtype: default: the weights'.
            compile_backend: "cudagraphs": compiled and replayed; another of torch.compile's, for
                tests; None: eager.
        """
        super().__init__()
        self.weights = weights
        self.batch = batch
        self._filters: Filters | None = None
        self._masked = False
        device, dtype = weights.head_KD.device, weights.head_KD.dtype
        self.num_tokens = len(weights.rotary) - 1
        width = weights.norm_D.shape[0]
        heads, head_width = weights.num_heads, width // weights.num_heads
        self.offset = prefix_positions - 1
        # The last token is predicted, and never an input.
        positions = self.offset + self.num_tokens
        # Whole buckets: a graph reads up to the end of one.
        positions = -(-positions // BUCKET) * BUCKET if compile_backend else positions
        shape = (len(weights.layers), rows, heads, positions, head_width)
        self.keys: Tensor
        self.values: Tensor
        for name in ("keys", "values"):
            self._buffer(name, torch.zeros(shape, dtype=cache_dtype or dtype, device=device))
        self.place: Tensor
        self._buffer("place", torch.zeros(1, dtype=torch.long, device=device))
        self.indices_LB: Tensor
        shape_LB = (self.num_tokens, batch)
        self._buffer("indices_LB", torch.zeros(shape_LB, dtype=torch.long, device=device))
        self.uniforms_LB: Tensor
        self._buffer("uniforms_LB", torch.zeros(shape_LB, dtype=torch.float64, device=device))
        self.scales_L: Tensor
        self._buffer("scales_L", torch.ones(self.num_tokens, device=device))
        self.starts_R: Tensor
        self._buffer("starts_R", torch.zeros(rows, dtype=torch.long, device=device))
        self.finite: Tensor
        self._buffer("finite", torch.ones(1, dtype=torch.bool, device=device))
        self._compiled = self._compile(compile_backend) if compile_backend else None

    def _compile(self, backend: str) -> Callable[..., None]:
        how: dict[str, Any] = {"backend": backend}
        if backend == "cudagraphs":
            how = {"mode": "reduce-overhead"}
            # What is compiled stays there for the next process: a start takes seconds, not minutes.
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.expanduser(COMPILE_CACHE))
        # Each bucket is a graph, with and without guidance. By default torch allows eight of them
        # for a function, whatever object it belongs to, and then raises.
        most = 2 * (self.keys.shape[3] // BUCKET)
        how |= {"recompile_limit": most, "isolate_recompiles": True}
        return torch.compile(self.forward, fullgraph=True, dynamic=False, **how)

    def _buffer(self, name: str, tensor: Tensor) -> None:
        # CUDA graphs write to what they were captured with: it must never move.
        torch._dynamo.mark_static_address(tensor)
        self.register_buffer(name, tensor, persistent=False)

    def begin(
        self, prefix: Prefix, uniforms_LB: Tensor, scales: list[float], filters: Filters
    ) -> None:
        """Take a batch, and draw its first token."""
        guided = prefix.num_rows > self.batch
        self._filters, self._masked = filters, bool(prefix.starts)
        self.place.zero_()
        self.finite.fill_(True)
        self.uniforms_LB.copy_(uniforms_LB)
        self.scales_L.copy_(torch.tensor(scales))
        self.starts_R.copy_(torch.tensor(prefix.starts or [0] * len(self.starts_R)))
        num_cached = prefix.num_positions
        for layer, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
            self.keys[layer, :, :, :num_cached] = keys.to(self.keys.dtype)
            self.values[layer, :, :, :num_cached] = values.to(self.values.dtype)
        if prefix.input_RD is not None:
            hidden_RD = self._blocks(at_least_fp32(prefix.input_RD), self.offset + 1, masked=False)
        else:
            assert prefix.hidden_RD is not None
            hidden_RD = at_least_fp32(prefix.hidden_RD)
        self._choose(hidden_RD, filters, guided)

    def advance(self, token: int, *, guided: bool) -> None:
        """Draw a token, the one after the last.

        Args:
            token: its number t.
            guided: whether the null halves run.
        """
        filled = self.offset + token + 1
        if self._compiled is None:
            self(self._filters, span=filled, masked=self._masked, guided=guided)
        else:
            span = -(-filled // BUCKET) * BUCKET
            self._compiled(self._filters, span=span, masked=True, guided=guided)

    def forward(self, filters: Filters, *, span: int, masked: bool, guided: bool) -> None:
        """Draw the next token.

        Args:
            filters: of the draws.
            span: positions of the cache that are read, at least those that are filled.
            masked: whether some of these are not to be seen.
            guided: whether the null halves run.
        """
        codes_B = self.indices_LB.index_select(0, self.place - 1)[0]
        x_BD = at_least_fp32(F.embedding(codes_B, self.weights.embeddings_KD))
        x_RD = torch.cat([x_BD, x_BD]) if guided else x_BD
        self._choose(self._blocks(x_RD, span, masked), filters, guided)

    def _choose(self, hidden_RD: Tensor, filters: Filters, guided: bool) -> None:
        normed_RD = self._norm(hidden_RD, self.weights.norm_D)
        logits_BK = F.linear(normed_RD, self.weights.head_KD).float()
        if guided:
            class_BK, null_BK = logits_BK.chunk(2)
            logits_BK = null_BK + self.scales_L.index_select(0, self.place) * (class_BK - null_BK)
        # nan and inf are the largest of whatever they are among.
        self.finite.logical_and_(logits_BK.amax().isfinite())
        uniforms_B = self.uniforms_LB.index_select(0, self.place)[0]
        codes_B = draw_codes(logits_BK, uniforms_B, filters)
        self.indices_LB.index_copy_(0, self.place, codes_B[None])
        self.place.add_(1)

    def _blocks(self, x_RD: Tensor, span: int, masked: bool) -> Tensor:
        table = self.weights.rotary.index_select(0, self.place)[0]
        slot = self.place + self.offset
        mask = self._mask(len(x_RD), slot, span) if masked else None
        for number, layer in enumerate(self.weights.layers):
            normed_RD = self._norm(x_RD, layer.attention_norm_D)
            y_RD = self._attend(number, layer, normed_RD, table, slot, span, mask)
            x_RD = x_RD + y_RD
            normed_RD = self._norm(x_RD, layer.ffn_norm_D)
            gate, up = F.linear(normed_RD, layer.w13).chunk(2, dim=-1)
            x_RD = x_RD + F.linear(F.silu(gate) * up, layer.w2)
        return x_RD

    def _mask(self, rows: int, slot: Tensor, span: int) -> Tensor:
        """What rows see, (R, 1, 1, span)."""
        columns = torch.arange(span, device=slot.device)
        return ((columns <= slot) & (columns >= self.starts_R[:rows, None]))[:, None, None]

    def _attend(
        self,
        number: int,
        layer: LayerWeights,
        normed_RD: Tensor,
        table: Tensor,
        slot: Tensor,
        span: int,
        mask: Tensor | None,
    ) -> Tensor:
        rows, width = normed_RD.shape
        qkv = F.linear(normed_RD, layer.wqkv).view(rows, 3, self.weights.num_heads, -1)
        q, k = _turn(qkv[:, :2], table).to(normed_RD.dtype).unbind(1)
        keys, values = self.keys[number, :rows], self.values[number, :rows]
        _write(keys, slot, k)
        _write(values, slot, qkv[:, 2])
        y = F.scaled_dot_product_attention(
            q[:, :, None],
            keys[:, :, :span].to(normed_RD.dtype),
            values[:, :, :span].to(normed_RD.dtype),
            attn_mask=mask,
        )
        return F.linear(y.reshape(rows, width), layer.wo)

    def _norm(self, x_RD: Tensor, weight_D: Tensor) -> Tensor:
        """As `transformer.RMSNorm`: in fp32, rounded, then weighted."""
        normed = x_RD * torch.rsqrt(x_RD.square().mean(-1, keepdim=True) + NORM_EPS)
        return normed.to(weight_D.dtype) * weight_D

    def result(self) -> Tensor:
        """Indices (B, L)."""
        return self.indices_LB.t().clone()

    def all_finite(self) -> bool:
        """Whether all logits were; the host waits for it."""
        return bool(self.finite)


def _turn(x_RcHh: Tensor, table: Tensor) -> Tensor:
    """Neighbouring pairs by the table's row (h / 2, 2), in fp32; see `rotary.rotate`."""
    cos, sin = table.unbind(-1)
    a, b = at_least_fp32(x_RcHh).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


def _write(cache_RHSh: Tensor, slot: Tensor, new_RHh: Tensor) -> None:
    new = new_RHh.to(cache_RHSh.dtype)[:, :, None]
    if cache_RHSh.dtype.itemsize == 1:
        # Not every operation knows fp8; all know bytes.
        cache_RHSh, new = cache_RHSh.view(torch.uint8), new.view(torch.uint8)
    cache_RHSh.index_copy_(2, slot, new)
