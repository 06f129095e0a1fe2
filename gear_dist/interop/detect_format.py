"""Which networks a public checkpoint holds, and under which of its wrappings.

GEAR's files keep copies side by side (`vq` and `vq_ema`, `ar` and `ema`), and the alignment's heads
as `projectors`, whose keys the public code begins with `projs.`; LlamaGen's wrap one in
`model`; Open-MAGVIT2's and IBQ's have a `state_dict` with the average as `model_ema.<key without
dots>`. All are told apart by the keys of the networks themselves.
"""

import argparse
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor

from gear_dist.errors import DataError

Copy = Literal["ema", "live"]
State = dict[str, Tensor]

_SIGNS = {
    "encoder.conv_in.weight": "tokenizer",
    "tok_embeddings.weight": "generator",
    "main.0.weight": "discriminator",
}
_PROJECTORS_KEY = re.compile(r"(projs\.)?\d+\.[024]\.(weight|bias)")
"""A linear layer of one of the heads; no other network has all keys of this form."""
_AVERAGED = ("vq_ema", "ema")
_WRAPPERS = ("module.", "_orig_mod.")
_EMA_PREFIX = "model_ema."
_TOKENIZER_PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
_LEFT_OUT = {
    "opt": "optimizer state",
    "sched": "learning-rate schedule",
    "args": "options of its training",
    "step": "progress of its training",
    "epoch": "progress of its training",
    "projectors": "alignment heads of an unknown form, which a run creates itself",
}
"""Why a top-level entry is left out, by how its key begins."""
_KNOWN_EXTRAS = {
    "quantize.codebook_used": "a usage counter",
    "freqs_cis": "the rotary table, which is computed",
}


class Dropped(NamedTuple):
    """A part of the file that was not taken, and why."""

    name: str
    reason: str


class Found(NamedTuple):
    """One network of a checkpoint."""

    network: str
    source: str
    """The file's key, such as `vq_ema`."""
    state: State
    extras: dict[str, tuple[int, ...]]
    """Shapes of known keys beside the state, such as `freqs_cis`."""


class Recognised(NamedTuple):
    """Everything that was found, and what was left."""

    networks: list[Found]
    dropped: list[Dropped]
    options: Mapping[str, Any]
    """Of the training that wrote the file, by name; none where it does not say."""


def recognise(checkpoint: Mapping[str, Any], copy: Copy = "ema") -> Recognised:
    """Find the networks of a checkpoint's top-level dictionary.

    Args:
        copy: which of two copies of a network to take, where there are two.

    Raises:
        DataError: there is no network, or an incomplete average.
    """
    if _is_state(checkpoint):
        checkpoint = {"file": checkpoint}
    candidates: dict[str, list[tuple[str, State]]] = {}
    dropped = []
    for key, value in checkpoint.items():
        state = _without_wrappers(value) if _is_state(value) else {}
        network = _network_of(state)
        if network:
            candidates.setdefault(network, []).append((key, state))
        else:
            dropped.append(Dropped(key, _why_left_out(key)))
    if not candidates:
        keys = ", ".join(list(checkpoint)[:8])
        raise DataError(f"no tokenizer, generator or discriminator found among its keys ({keys})")
    networks = []
    for network, copies in candidates.items():
        source, state = _preferred(copies, copy)
        dropped += [
            Dropped(key, f"another copy of the {network}") for key, _ in copies if key != source
        ]
        found, rest = _cleaned(network, source, state, copy)
        networks.append(found)
        dropped += rest
    return Recognised(networks, dropped, _options(checkpoint.get("args")))


def _options(args: Any) -> Mapping[str, Any]:
    node = vars(args) if isinstance(args, argparse.Namespace) else args
    return node if isinstance(node, Mapping) else {}


def _why_left_out(key: str) -> str:
    reasons = (reason for start, reason in _LEFT_OUT.items() if key.startswith(start))
    return next(reasons, "no network that is imported")


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(item, Tensor) for item in value.values())
    )


def _without_wrappers(state: Mapping[str, Tensor]) -> State:
    """Without the prefixes that data-parallel and compiled modules give every key."""
    result = {key: value for key, value in state.items() if isinstance(key, str)}
    while result and (found := [w for w in _WRAPPERS if all(key.startswith(w) for key in result)]):
        result = {key.removeprefix(found[0]): value for key, value in result.items()}
    return result


def _network_of(state: Mapping[str, Tensor]) -> str:
    if state and all(_PROJECTORS_KEY.fullmatch(key) for key in state):
        return "projectors"
    return next((network for sign, network in _SIGNS.items() if sign in state), "")


def _preferred(copies: list[tuple[str, State]], copy: Copy) -> tuple[str, State]:
    averaged = [item for item in copies if item[0] in _AVERAGED]
    live = [item for item in copies if item[0] not in _AVERAGED]
    first, second = (averaged, live) if copy == "ema" else (live, averaged)
    return (first or second)[0]


def _cleaned(network: str, source: str, state: State, copy: Copy) -> tuple[Found, list[Dropped]]:
    """Leave out what is known not to belong; what else does not fit is refused later."""
    extras = {key: tuple(state[key].shape) for key in _KNOWN_EXTRAS if key in state}
    dropped = [Dropped(key, _KNOWN_EXTRAS[key]) for key in extras]
    kept = {key: value for key, value in state.items() if key not in extras}
    if network == "projectors":
        kept = {key.removeprefix("projs."): value for key, value in kept.items()}
    if network == "tokenizer":
        for prefix, reason in (("loss.", "its training's losses"), (_EMA_PREFIX, "")):
            count = sum(key.startswith(prefix) for key in kept)
            if prefix == _EMA_PREFIX and count:
                kept, source, reason = _choose_average(kept, source, copy)
            kept = {key: value for key, value in kept.items() if not key.startswith(prefix)}
            if count:
                dropped.append(Dropped(f"{prefix}* ({count} tensors)", reason))
    return Found(network, source, kept, extras), dropped


def _choose_average(state: State, source: str, copy: Copy) -> tuple[State, str, str]:
    """Put `model_ema.<key without dots>` in the live keys' place where the average is wanted."""
    if copy == "live":
        return state, source, "the average, which was not asked for"
    live = [key for key in state if key.startswith(_TOKENIZER_PARTS)]
    averaged = dict(_averages(state, live))
    missing = [key for key in live if key not in averaged]
    if missing:
        raise DataError(
            f"its average {_EMA_PREFIX}* lacks {len(missing)} tensors, such as that of "
            f"{missing[0]}: take the live weights with --weights live"
        )
    return state | averaged, f"{source}, {_EMA_PREFIX}*", "taken under the live keys"


def _averages(state: State, live: list[str]) -> Iterator[tuple[str, Tensor]]:
    for key in live:
        name = _EMA_PREFIX + key.replace(".", "")
        if name in state:
            yield key, state[name]
