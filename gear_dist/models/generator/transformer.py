"""The autoregressive generator, under the public checkpoints' key names.

Shapes: B images, L tokens, P positions of the condition, S positions in this pass, D model width,
K codes, N = B (L - 1) soft tokens, C code width. Source: arXiv 2406.06525; 2606.32039.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gear_dist.config.models import GeneratorConfig
from gear_dist.models.activation_checkpoint import activation_checkpoint
from gear_dist.models.generator.conditioning import ClassEmbedding, Condition
from gear_dist.models.generator.prefix import Prefix
from gear_dist.models.generator.rotary import at_least_fp32, rotary_table, rotate
from gear_dist.models.tokenizers.codes import Codes
from gear_kernels import vocabulary_cross_entropy

NORM_EPS = 1e-5
INIT_STD = 0.02
HIDDEN_MULTIPLE = 256


class SoftTokens(NamedTuple):
    """Tokens of the soft read-out: latents and codes in place of indices."""

    latents_BLC: Tensor
    codes: Codes
    log_sum_exp_BL: Tensor
    temperature: float

    def without_last(self) -> "SoftTokens":
        """The first L - 1 tokens of each image: what a decoder reads to predict all L."""
        return self._replace(
            latents_BLC=self.latents_BLC[:, :-1], log_sum_exp_BL=self.log_sum_exp_BL[:, :-1]
        )

    def read(self, table_KD: Tensor, kernels: str) -> Tensor:
        """softmax(affinity / temperature) @ table: (B, L, D), in autocast's dtype where it is on.

        The table alone is rounded to that dtype: latents, affinities and softmax stay fp32.
        """
        batch, length, _ = self.latents_BLC.shape
        soft_ND = self.codes.soft_readout(
            self.latents_BLC.flatten(0, 1),
            _as_autocast(table_KD),
            self.log_sum_exp_BL.flatten(),
            temperature=self.temperature,
            implementation=kernels,
        )
        return soft_ND.view(batch, length, -1)


class StraightThroughTokens(NamedTuple):
    """Hard tokens whose gradient is the soft ones': the one-hot of the index, straight-through."""

    indices_BL: Tensor
    soft: SoftTokens

    def without_last(self) -> "StraightThroughTokens":
        """See `SoftTokens.without_last`."""
        return StraightThroughTokens(self.indices_BL[:, :-1], self.soft.without_last())

    def read(self, table_KD: Tensor, kernels: str) -> Tensor:
        """(hard + softmax(affinity / temperature) - sg softmax) @ table: rows of it, (B, L, D)."""
        soft_BLD = self.soft.read(table_KD, kernels)
        return F.embedding(self.indices_BL, table_KD) + (soft_BLD - soft_BLD.detach())


def _as_autocast(operand: Tensor) -> Tensor:
    """The operand of a fused product as autocast would round it; float64 stays, as in linear.

    Autocast does not know the fused operations: without this they multiply fp32 weights in fp32.
    """
    device = operand.device.type
    if not torch.is_autocast_enabled(device) or operand.dtype == torch.float64:
        return operand
    return operand.to(torch.get_autocast_dtype(device))


Tokens = Tensor | SoftTokens | StraightThroughTokens
"""Indices (B, L), or what stands for them with a gradient."""


class GeneratorOutput(NamedTuple):
    """One training pass."""

    tap_BLD: Tensor
    """Residual stream after the tap layer; position i predicts token i."""
    cross_entropy: Tensor | None
    """Mean over all tokens, fp32; None where no targets were given."""


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + eps) * weight, in fp32."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x32 = at_least_fp32(x)
        normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + NORM_EPS)
        return normed.to(x.dtype) * self.weight


class TokenEmbedding(nn.Module):
    """Rows of the (K, D) table: hard by index, soft by the fused read-out.

    All read the table inside this module's forward, so that ZeRO-3 gathers it there.
    """

    def __init__(self, num_codes: int, width: int, kernels: str):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_codes, width))
        self.kernels = kernels

    def forward(self, tokens: Tokens) -> Tensor:
        """Tokens (B, L) of any kind to (B, L, D)."""
        if isinstance(tokens, Tensor):
            return F.embedding(tokens, self.weight)
        return tokens.read(self.weight, self.kernels)


class Attention(nn.Module):
    """Causal multi-head self-attention; wqkv rows are [q; k; v], each head-major."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.wqkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.wo = nn.Linear(config.width, config.width, bias=False)
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(self, x_BSD: Tensor, table: Tensor) -> Tensor:
        heads = (self.num_heads, x_BSD.shape[-1] // self.num_heads)
        q, k, v = (part.unflatten(-1, heads) for part in self.wqkv(x_BSD).chunk(3, dim=-1))
        q, k = rotate(q, table), rotate(k, table)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        y = attend(q, k, v, causal=True).to(x_BSD.dtype)
        return self.dropout(self.wo(y.transpose(1, 2).flatten(2)))


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(h)) v, heads second."""
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    # In bf16 the backward of torch's attention on CPU takes three times as long as in fp32.
    with torch.autocast("cpu", enabled=False):
        q, k, v = at_least_fp32(q), at_least_fp32(k), at_least_fp32(v)
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        hidden = -(-(8 * config.width // 3) // HIDDEN_MULTIPLE) * HIDDEN_MULTIPLE
        self.w1 = nn.Linear(config.width, hidden, bias=False)
        self.w3 = nn.Linear(config.width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, config.width, bias=False)
        self.dropout = nn.Dropout(config.feed_forward_dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.width)
        self.ffn_norm = RMSNorm(config.width)
        self.recomputes = config.activation_checkpointing

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return activation_checkpoint(self._forward, x, table, enabled=self.recomputes)

    def _forward(self, x: Tensor, table: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), table)
        return x + self.feed_forward(self.ffn_norm(x))


class OutputHead(nn.Linear):
    """The (K, D) output matrix. `forward` is the loss, so that logits need not exist at once."""

    def __init__(self, width: int, num_codes: int, kernels: str):
        super().__init__(width, num_codes, bias=False)
        self.kernels = kernels

    def forward(  # type: ignore[override]
        self, hidden_BLD: Tensor, targets_BL: Tensor | StraightThroughTokens
    ) -> Tensor:
        """Mean cross-entropy over all tokens, fp32 scalar.

        Straight-through targets give it a gradient to the one-hot t as well: -t @ log p.
        """
        if isinstance(targets_BL, StraightThroughTokens):
            loss = self._cross_entropy(hidden_BLD, targets_BL.indices_BL)
            target_BLD = targets_BL.read(self.weight, self.kernels).float()
            # The log-sum-exp in log p has no part in it: a straight-through one-hot always sums
            # to 1. So the target's rows alone are left, at a value of 0.
            moved_BLD = target_BLD - target_BLD.detach()
            return loss - (hidden_BLD.detach().float() * moved_BLD).sum(-1).mean()
        return self._cross_entropy(hidden_BLD, targets_BL)

    def _cross_entropy(self, hidden_BLD: Tensor, targets_BL: Tensor) -> Tensor:
        return vocabulary_cross_entropy(
            _as_autocast(hidden_BLD.flatten(0, 1)),
            _as_autocast(self.weight),
            targets_BL.flatten(),
            implementation=self.kernels,
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits (..., K); for sampling."""
        return F.linear(hidden, self.weight).float()


class Generator(nn.Module):
    """Llama-style decoder over the positions of a condition and the image tokens."""

    condition_needs_blocks = False
    """Whether `read_condition` runs the blocks."""

    def __init__(self, config: GeneratorConfig, *, num_codes: int, grid_size: int, kernels: str):
        super().__init__()
        self.config = config
        self.grid_size = grid_size
        self.tok_embeddings = TokenEmbedding(num_codes, config.width, kernels)
        self.cls_embedding = self._build_condition_embedding()
        self.token_dropout = nn.Dropout(config.token_dropout)
        self.layers = nn.ModuleList(map(self._build_block, range(config.num_layers)))
        self.norm = RMSNorm(config.width)
        self.output = OutputHead(config.width, num_codes, kernels)
        self._initialise()

    def _build_condition_embedding(self) -> Any:
        return ClassEmbedding(self.config)

    def _build_block(self, index: int) -> nn.Module:
        return Block(self.config)

    def _initialise(self) -> None:
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=INIT_STD)
        nn.init.zeros_(self.output.weight)

    @property
    def num_tokens(self) -> int:
        """Tokens L per image."""
        return self.grid_size**2

    def rotary(self, device: torch.device) -> Tensor:
        """Rotary rows (P + L, h / 2, 2) of all positions."""
        head_width = self.config.width // self.config.num_heads
        return rotary_table(self.grid_size, head_width, device)

    def forward(
        self,
        tokens: Tokens,
        condition: Condition,
        targets_BL: Tensor | StraightThroughTokens | None = None,
    ) -> GeneratorOutput:
        """The condition, then the first L - 1 tokens; the i-th from its last position predicts i.

        Without targets only the blocks up to the tap run.

        Args:
            tokens: the first L - 1.
            condition: of each image, the null condition where it is dropped.
            targets_BL: all L, to predict.
        """
        x, where = self.embed(tokens, condition)
        tap = self.config.tap_layer
        for block in self.layers[:tap]:
            x = block(x, where)
        tap_BLD = self.predicting(x, where)
        if targets_BL is None:
            return GeneratorOutput(tap_BLD, None)
        for block in self.layers[tap:]:
            x = block(x, where)
        hidden_BLD = self.predicting(x, where)
        return GeneratorOutput(tap_BLD, self.output(self.norm(hidden_BLD), targets_BL))

    def embed(self, tokens: Tokens, condition: Condition) -> tuple[Tensor, Any]:
        """The residual stream before the first block, and what blocks need to know of positions."""
        condition_BPD = self.cls_embedding(condition)
        tokens_BlD = self.tok_embeddings(tokens).to(condition_BPD.dtype)
        x = self.token_dropout(torch.cat([condition_BPD, tokens_BlD], dim=1))
        return x, self.rotary(x.device)[: x.shape[1]]

    def read_condition(self, condition: Condition) -> Prefix:
        """The condition as decoding starts from it."""
        return Prefix(self.cls_embedding(condition)[:, 0])

    def predicting(self, x: Tensor, where: Any) -> Tensor:
        """Of the residual stream, the positions that predict tokens, (B, L, D)."""
        return x

    @torch.no_grad()
    def logits(self, indices_BL: Tensor, condition: Condition) -> Tensor:
        """fp32 logits (B, L', K) after the condition and L' - 1 given tokens."""
        x, where = self.embed(indices_BL, condition)
        for block in self.layers:
            x = block(x, where)
        return self.output.logits(self.norm(self.predicting(x, where)))
