"""Checkpoint files as the public projects wrap them, around the reference tokenizers' weights."""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from reference_numbers import part, read_reference

State = dict[str, Tensor]


def reference_state(name: str) -> State:
    """Weights of a reference file, under public keys."""
    return part(read_reference(name)[1], "state.")


def shifted(state: State) -> State:
    """Other weights of the same shapes: stands for the copy that must not be taken."""
    return {key: value + 1 for key, value in state.items()}


def gear_file(path: Path, tokenizer: State) -> Path:
    """GEAR's stage-0 training checkpoint: live and averaged tokenizer, optimizer, options."""
    discriminator = part(read_reference("discriminator")[1], "state.")
    content = {
        "vq": shifted(tokenizer),
        "vq_ema": tokenizer,
        "discriminator": discriminator,
        "opt_vq": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]},
        "args": argparse.Namespace(lr=1e-4, vq_model="VQ-16"),
        "steps": 3,
    }
    torch.save(content, path)
    return path


def joint_states(prefix: str) -> dict[str, State]:
    """All four networks of the reference joint step, `before` or `after` it."""
    numbers = read_reference("joint_step")[1]
    names = ("tokenizer", "discriminator", "generator", "projector")
    return {name: part(numbers, f"{prefix}.{name}.") for name in names}


def gear_joint_file(
    path: Path, heads: str = "projs.", networks: dict[str, State] | None = None
) -> Path:
    """GEAR's stage-1 training checkpoint.

    Args:
        heads: how the keys of the projectors begin.
        networks: live and averaged alike; by default the reference's, where `before` is averaged.
    """
    live = networks or joint_states("after")
    average = networks or joint_states("before")
    content = {
        "vq": live["tokenizer"],
        "vq_ema": average["tokenizer"],
        "discriminator": live["discriminator"],
        "ar": live["generator"],
        "ema": average["generator"],
        "projectors": {f"{heads}0.{key}": value for key, value in live["projector"].items()},
        "opt_ar": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "sched_ar": {"last_epoch": 3},
        "args": argparse.Namespace(lr=1e-4),
        "steps": 3,
    }
    torch.save(content, path)
    return path


def gear_text_generator_file(path: Path, generator: State) -> Path:
    """GEAR's gear-t2i-gpic-1b.pt."""
    torch.save({"ema": generator, "args": {"text_attn": "causal"}, "steps": 390_625}, path)
    return path


def llamagen_tokenizer_file(path: Path, tokenizer: State) -> Path:
    """LlamaGen's vq_ds16_c2i.pt."""
    num_codes = len(tokenizer["quantize.embedding.weight"])
    used = {"quantize.codebook_used": torch.zeros(num_codes, dtype=torch.int64)}
    torch.save({"model": tokenizer | used}, path)
    return path


def llamagen_generator_file(path: Path, generator: State, grid: int, head_width: int) -> Path:
    """LlamaGen's c2i_*.pt."""
    table = {"freqs_cis": torch.zeros(1 + grid * grid, head_width // 2, 2)}
    torch.save({"model": generator | table}, path)
    return path


def lightning_file(path: Path, tokenizer: State, average: State | None = None) -> Path:
    """Open-MAGVIT2's and IBQ's .ckpt; by default `tokenizer` is the average."""
    live = tokenizer if average is not None else shifted(tokenizer)
    average = tokenizer if average is None else average
    state = dict(live)
    state |= {f"model_ema.{key.replace('.', '')}": value for key, value in average.items()}
    state["model_ema.decay"] = torch.tensor(0.999)
    state["model_ema.num_updates"] = torch.tensor(7)
    state["loss.discriminator.main.0.weight"] = torch.zeros(4, 3, 4, 4)
    torch.save({"state_dict": state, "epoch": 1, "global_step": 7}, path)
    return path
