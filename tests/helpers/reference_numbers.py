"""Reference numbers that the method's public code produced, and how close is close enough."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "reference"


def read_reference(name: str) -> tuple[dict, dict[str, Tensor]]:
    """Configuration and tensors of a reference file."""
    with safe_open(FOLDER / f"{name}.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["config"]), tensors


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {key[len(prefix) :]: t for key, t in tensors.items() if key.startswith(prefix)}


def assert_close(ours: Tensor, theirs: Tensor, relative: float, name: str, floor: float = 0.0):
    """|a - b| <= relative * max|b| + floor, with the worst element in the message."""
    assert ours.shape == theirs.shape, f"{name}: {tuple(ours.shape)} against {tuple(theirs.shape)}"
    error = (ours.double() - theirs.double()).abs().max().item()
    bound = relative * theirs.double().abs().max().item() + floor
    assert error <= bound, f"{name}: differs by {error:.3e}, allowed {bound:.3e}"
    assert torch.isfinite(ours).all(), name
