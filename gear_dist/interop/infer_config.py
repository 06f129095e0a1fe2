"""The configuration of a network from the shapes of its weights.

What shapes do not tell has the published value: 32 groups a norm, 64 channels a head, a tap after a
third of the layers; `key=value` overrides say otherwise. The teacher's name cannot be inferred
from the projectors' output width.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from gear_dist.errors import DataError

HEAD_WIDTH = 64
PUBLISHED_HEADS = {1440: 20}
"""Heads by width, where they are of another width: the text-to-image model of 1B."""
TAP_SHARE = 3
State = Mapping[str, Tensor]
Settings = dict[str, Any]


def infer_settings(network: str, state: State) -> Settings:
    """Settings of the network's section (see `architecture_settings`) that reproduce its shapes.

    Raises:
        DataError: a weight that tells the architecture is missing, or widths do not fit together.
    """
    readers = {
        "tokenizer": _tokenizer,
        "generator": _generator,
        "discriminator": _discriminator,
        "projectors": _projectors,
    }
    try:
        return readers[network](state)
    except KeyError as error:
        raise DataError(f"{network}: {error.args[0]} is missing") from None


def _tokenizer(state: State) -> Settings:
    if "quantize.embedding.weight" not in state:
        # It has no attention, and the setting means nothing to it.
        return _trunk(state, "down", "block") | _sign_codes(state) | {"attention_levels": [-1]}
    if _indices(state, r"encoder\.conv_blocks\.(\d+)\."):
        trunk = {"quantizer": "vq"} | _trunk(state, "conv_blocks", "res")
    else:
        trunk = {"quantizer": "ibq"} | _trunk(state, "down", "block")
    num_codes, width = state["quantize.embedding.weight"].shape
    return trunk | {
        "codebook_size": num_codes,
        "code_width": width,
        "latent_channels": state["encoder.conv_out.weight"].shape[0],
    }


def _sign_codes(state: State) -> Settings:
    bits = state["encoder.conv_out.weight"].shape[0]
    return {"quantizer": "lfq", "code_width": bits, "codebook_size": 2**bits}


def _trunk(state: State, levels_key: str, blocks_key: str) -> Settings:
    channels = state["encoder.conv_in.weight"].shape[0]
    levels = _indices(state, rf"encoder\.{levels_key}\.(\d+)\.")
    widths = [
        state[f"encoder.{levels_key}.{i}.{blocks_key}.0.conv1.weight"].shape[0] for i in levels
    ]
    if not widths or any(width % channels for width in widths):
        raise DataError(f"tokenizer: levels of {widths} channels are no multiples of {channels}")
    attention = [i for i in levels if f"encoder.{levels_key}.{i}.attn.0.q.weight" in state]
    blocks = _indices(state, rf"encoder\.{levels_key}\.0\.{blocks_key}\.(\d+)\.")
    return {
        "channels": channels,
        "channel_multipliers": [width // channels for width in widths],
        "num_res_blocks": len(blocks),
        "attention_levels": [-1] if attention == levels[-1:] else attention,
    }


def _generator(state: State) -> Settings:
    width = state["tok_embeddings.weight"].shape[1]
    layers = len(_indices(state, r"layers\.(\d+)\."))
    return _condition(state) | {
        "width": width,
        "num_layers": layers,
        "num_heads": PUBLISHED_HEADS.get(width, max(1, width // HEAD_WIDTH)),
        "tap_layer": max(1, layers // TAP_SHARE),
    }


def _condition(state: State) -> Settings:
    projection = state.get("cls_embedding.cap_proj.fc1.weight")
    if projection is None:
        return {"num_classes": state["cls_embedding.embedding_table.weight"].shape[0] - 1}
    return {"condition": "text", "text_width": projection.shape[1], "text_rotary": "zeros"}


def _discriminator(state: State) -> Settings:
    convolutions = [key for key, value in state.items() if value.dim() == 4]
    has_statistics = any(key.endswith(".running_mean") for key in state)
    return {
        "width": state["main.0.weight"].shape[0],
        "num_layers": len(convolutions) - 2,
        "norm": "batch" if has_statistics else "group",
    }


def _projectors(state: State) -> Settings:
    return {"projector_width": state["0.0.weight"].shape[0]}


def _indices(keys: Iterable[str], pattern: str) -> list[int]:
    matches = (re.match(pattern, key) for key in keys)
    return sorted({int(match[1]) for match in matches if match})
