"""The step of one token on the CPU in fp32, by few_rows.c: a row's bits depend on no other row.

Shapes: B images, R rows (B, or 2 B: class halves, then null halves), L tokens, S places of the
cache, H heads of width h, D model width, F hidden width, K codes.
"""

import ctypes
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gear_dist.inference.decoding.native import LANES, FewRows, PackedMatrix, pack
from gear_dist.inference.decoding.weights import DecoderWeights, LayerWeights
from gear_dist.inference.draws import Filters, draw_codes
from gear_dist.models.generator.prefix import Prefix


class NativeLayer(NamedTuple):
    """`LayerWeights` in panels."""

    attention_norm_D: Tensor
    wqkv: PackedMatrix
    wo: PackedMatrix
    ffn_norm_D: Tensor
    w13: PackedMatrix
    w2: PackedMatrix


class NativeWeights(NamedTuple):
    """`DecoderWeights` in panels."""

    embeddings_KD: Tensor
    layers: tuple[NativeLayer, ...]
    norm_D: Tensor
    head: PackedMatrix
    rotary: Tensor
    num_heads: int
    library: ctypes.CDLL

    @property
    def width(self) -> int:
        """Model width D."""
        return len(self.norm_D)


def pack_native(weights: DecoderWeights, library: ctypes.CDLL, *, release: bool) -> NativeWeights:
    """Weights in panels.

    Args:
        weights: fp32.
        library: of `load_few_rows`.
        release: empty the matrices that are packed, one after another, so that there are never two
            copies of all.
    """

    def take(matrix: Tensor) -> PackedMatrix:
        packed = pack(matrix)
        if release:
            matrix.untyped_storage().resize_(0)
        return packed

    def take_layer(layer: LayerWeights) -> NativeLayer:
        return NativeLayer(
            layer.attention_norm_D,
            take(layer.wqkv),
            take(layer.wo),
            layer.ffn_norm_D,
            take(layer.w13),
            take(layer.w2),
        )

    return NativeWeights(
        embeddings_KD=weights.embeddings_KD,
        layers=tuple(map(take_layer, weights.layers)),
        norm_D=weights.norm_D,
        head=take(weights.head_KD),
        rotary=weights.rotary.contiguous(),
        num_heads=weights.num_heads,
        library=library,
    )


class NativeStep:
    """Decodes one batch size; a `Step`."""

    def __init__(self, weights: NativeWeights, *, batch: int, rows: int, most_visible: int):
        """Allocates cache and buffers.

        Args:
            weights: of the generator.
            batch: images B.
            rows: R.
            most_visible: places that the longest condition takes.
        """
        self._weights, self._batch = weights, batch
        self.num_tokens = len(weights.rotary) - 1
        heads, head_width = weights.num_heads, weights.width // weights.num_heads
        blocks = -(-(most_visible + self.num_tokens - 1) // LANES)
        wide = -(-head_width // LANES) * LANES
        layers = len(weights.layers)
        self._keys = torch.zeros(layers, rows, heads, blocks, head_width, LANES)
        self._values = torch.zeros(layers, rows, heads, blocks * LANES, wide)
        layer = weights.layers[0]
        hidden = layer.w2.num_inputs
        self._few = FewRows(
            weights.library, rows, max(weights.width, hidden), torch.get_num_threads()
        )
        self._normed_RD = torch.empty(rows, weights.width)
        self._y_RD = torch.empty(rows, weights.width)
        self._qkv = torch.empty(rows, layer.wqkv.width)
        self._gates = torch.empty(rows, layer.w13.width)
        self._hidden_RF = torch.empty(rows, hidden)
        self._logits_RK = torch.empty(rows, weights.head.width)
        self._indices_LB = torch.zeros(self.num_tokens, batch, dtype=torch.long)
        self._finite = torch.ones(1, dtype=torch.bool)
        self._visible_R = torch.ones(rows, dtype=torch.long)

    def begin(
        self, prefix: Prefix, uniforms_LB: Tensor, scales: list[float], filters: Filters
    ) -> None:
        """Take a batch, and draw its first token."""
        self._uniforms_LB, self._scales, self._filters = uniforms_LB, scales, filters
        self._finite.fill_(True)
        starts = torch.tensor(prefix.starts or [0] * prefix.num_rows)
        self._visible_R = prefix.num_positions - starts
        for layer, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
            for row, start in enumerate(prefix.starts):
                self._remember(layer, row, keys[row, :, start:], values[row, :, start:])
        if prefix.input_RD is not None:
            hidden_RD = self._blocks(prefix.input_RD.clone(), token=0)
        else:
            assert prefix.hidden_RD is not None
            hidden_RD = prefix.hidden_RD
        self._choose(hidden_RD, token=0)

    def _remember(self, layer: int, row: int, keys_HSh: Tensor, values_HSh: Tensor) -> None:
        """Put a condition's keys and values where decoding continues: from a row's first place."""
        num_places = keys_HSh.shape[1]
        filled = F.pad(keys_HSh, (0, 0, 0, -num_places % LANES)).unflatten(1, (-1, LANES))
        self._keys[layer, row, :, : filled.shape[1]] = filled.transpose(2, 3)
        self._values[layer, row, :, :num_places, : values_HSh.shape[2]] = values_HSh

    def advance(self, token: int, *, guided: bool) -> None:
        """Draw a token, the one after the last.

        Args:
            token: its number t.
            guided: whether the null halves run.
        """
        x_BD = F.embedding(self._indices_LB[token - 1], self._weights.embeddings_KD)
        x_RD = torch.cat([x_BD, x_BD]) if guided else x_BD
        self._choose(self._blocks(x_RD, token), token)

    def _blocks(self, x_RD: Tensor, token: int) -> Tensor:
        """The residual stream (R, D) after all blocks, in the place of the one before."""
        rows, few = len(x_RD), self._few
        normed_RD, y_RD, qkv = self._normed_RD[:rows], self._y_RD[:rows], self._qkv[:rows]
        gates, hidden_RF = self._gates[:rows], self._hidden_RF[:rows]
        # The input of token t is the t-th after the condition; a class is itself the 0-th.
        lengths_R = self._visible_R[:rows] + token
        table = self._weights.rotary[token]
        for number, layer in enumerate(self._weights.layers):
            few.norm(x_RD, layer.attention_norm_D, normed_RD)
            few.product(normed_RD, layer.wqkv, qkv, add=False)
            few.attend(qkv, table, (self._keys[number], self._values[number]), lengths_R, y_RD)
            few.product(y_RD, layer.wo, x_RD, add=True)
            few.norm(x_RD, layer.ffn_norm_D, normed_RD)
            few.product(normed_RD, layer.w13, gates, add=False)
            few.swiglu(gates, hidden_RF)
            few.product(hidden_RF, layer.w2, x_RD, add=True)
        return x_RD

    def _choose(self, hidden_RD: Tensor, token: int) -> None:
        scale = self._scales[token]
        rows = self._batch if scale == 1 else len(hidden_RD)
        normed_RD, logits_RK = self._normed_RD[:rows], self._logits_RK[:rows]
        self._few.norm(hidden_RD[:rows].contiguous(), self._weights.norm_D, normed_RD)
        self._few.product(normed_RD, self._weights.head, logits_RK, add=False)
        logits_BK = logits_RK[: self._batch, : self._weights.head.num_outputs]
        if scale != 1:
            null_BK = logits_RK[self._batch :, : self._weights.head.num_outputs]
            logits_BK = torch.add(null_BK, logits_BK.sub_(null_BK), alpha=scale)
        # nan and inf are the largest of whatever they are among.
        self._finite.logical_and_(logits_BK.amax().isfinite())
        self._indices_LB[token] = draw_codes(logits_BK, self._uniforms_LB[token], self._filters)

    def result(self) -> Tensor:
        """Indices (B, L)."""
        return self._indices_LB.t().clone()

    def all_finite(self) -> bool:
        """Whether all logits were."""
        return bool(self._finite)
