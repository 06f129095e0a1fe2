"""The text-to-image generator as a plain formula: all padded slots, a dense mask, any dtype.

It computes what the public layout computes: every slot of every caption, and all positions at once.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from gear_dist.config.models import GeneratorConfig
from gear_dist.models.generator import TextCondition

State = dict[str, Tensor]


def dense_mask(text_mask_BT: Tensor, num_tokens: int, mask: str) -> Tensor:
    """(B, S, S), true where a row sees a column: no padding but itself."""
    batch, slots = text_mask_BT.shape
    size = slots + num_tokens
    columns = torch.cat([text_mask_BT, text_mask_BT.new_ones(batch, num_tokens)], dim=1)
    seen = torch.ones(size, size, dtype=torch.bool).tril()
    if mask == "prefix":
        seen[:slots, :slots] = True
    return (seen & columns[:, None]) | torch.eye(size, dtype=torch.bool)


def dense_hidden(
    state: State,
    config: GeneratorConfig,
    text_BTF: Tensor,
    text_mask_BT: Tensor,
    indices_Bl: Tensor,
    *,
    grid_size: int,
) -> tuple[Tensor, Tensor]:
    """The residual stream (B, T + l, D) after the tap layer, and after the final norm."""
    slots = text_BTF.shape[1]
    text = F.linear(text_BTF, state["cls_embedding.cap_proj.fc1.weight"])
    text = F.linear(F.gelu(text, approximate="tanh"), state["cls_embedding.cap_proj.fc2.weight"])
    x = torch.cat([text, F.embedding(indices_Bl, state["tok_embeddings.weight"])], dim=1)
    seen = dense_mask(text_mask_BT, indices_Bl.shape[1], config.text_mask)[:, None]
    angles = _angles(grid_size, config.width // config.num_heads)[: indices_Bl.shape[1]]
    turns = torch.polar(torch.ones_like(angles), angles).to(
        torch.complex128 if x.dtype == torch.float64 else torch.complex64
    )
    text_turns = turns.new_full((slots, turns.shape[1]), float(config.text_rotary == "identity"))
    turns = torch.cat([text_turns, turns])
    tap = x
    for layer in range(config.num_layers):
        weights = {
            key.removeprefix(f"layers.{layer}."): value
            for key, value in state.items()
            if key.startswith(f"layers.{layer}.")
        }
        x = _block(x, weights, config, turns, seen, slots)
        tap = x if layer + 1 == config.tap_layer else tap
    return tap, _rms(x, state["norm.weight"])


def _angles(side: int, head_width: int) -> Tensor:
    quarter = head_width // 4
    frequencies = 10000.0 ** (-2 * torch.arange(quarter) / (head_width // 2))
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float()
    return torch.cat([places[:, :1] * frequencies, places[:, 1:] * frequencies], dim=1)


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def _block(
    x: Tensor, weights: State, config: GeneratorConfig, turns: Tensor, seen: Tensor, slots: int
) -> Tensor:
    double = "attention.wqkv_text.weight" in weights

    def by_stream(y: Tensor, own: str, shared: str) -> Tensor:
        if not double:
            return F.linear(y, weights[shared])
        parts = F.linear(y[:, :slots], weights[own]), F.linear(y[:, slots:], weights[shared])
        return torch.cat(parts, dim=1)

    normed = _rms(x, weights["attention_norm.weight"])
    if double:
        text = _rms(x[:, :slots], weights["attention_norm_text.weight"])
        normed = torch.cat([text, normed[:, slots:]], dim=1)
    qkv = by_stream(normed, "attention.wqkv_text.weight", "attention.wqkv.weight")
    q, k, v = qkv.unflatten(-1, (3, config.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q, k = _turn(q, turns), _turn(k, turns)
    logits = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen, -torch.inf)
    y = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
    x = x + by_stream(y, "attention.wo_text.weight", "attention.wo.weight")
    y = _rms(x, weights["ffn_norm.weight"])
    gate = F.silu(F.linear(y, weights["feed_forward.w1.weight"]))
    gated = gate * F.linear(y, weights["feed_forward.w3.weight"])
    return x + F.linear(gated, weights["feed_forward.w2.weight"])


def _turn(x: Tensor, turns: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns).flatten(-2)


def packed_condition(text_BTF: Tensor, text_mask_BT: Tensor) -> TextCondition:
    """The condition of padded slots, as the public code pads: on the right, the last slot first."""
    rows, lengths, hidden = [], [], []
    for features, mask in zip(text_BTF, text_mask_BT, strict=True):
        padded = not mask[-1]
        own = features[mask]
        rows.append(torch.cat([own, features[-1:]]) if padded else own)
        lengths.append(len(rows[-1]))
        hidden.append(bool(padded))
    null = text_BTF.new_zeros(1, text_BTF.shape[-1])
    return TextCondition(torch.cat(rows), tuple(lengths), tuple(hidden), null, True)
