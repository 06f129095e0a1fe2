"""Resolves run.device, engine.precision (autocast dtype), engine.deterministic for this machine."""

import os
from typing import Literal, TypeVar

import torch
from torch import nn

from gear_dist.errors import ConfigError

DeviceName = Literal["auto", "cuda", "cpu"]
Module = TypeVar("Module", bound=nn.Module)

CHANNELS_LAST_DEVICES = ("cuda",)
"""Where bf16 convolutions on tensor cores want weights channels-last."""


def choose_device(name: str, local_rank: int = 0, *, setting: str = "run.device") -> torch.device:
    """The device of a process.

    Args:
        name: cuda, cpu, or auto: CUDA where a device is visible, else the CPU.
        local_rank: which of the machine's devices.
        setting: what was set, for errors.

    Raises:
        ConfigError: CUDA is asked for and unavailable, or has too few devices.
    """
    count = torch.cuda.device_count() if name != "cpu" and torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and count == 0):
        return torch.device("cpu")
    if local_rank >= count:
        built = "" if torch.version.cuda else f" (torch {torch.__version__} is built without CUDA)"
        found = f"{count} CUDA device{'s' if count != 1 else ''} visible to this process"
        raise ConfigError(
            f"{setting}={name}: {found}{built}, device {local_rank} is needed: use {setting}=cpu, "
            "fewer workers, or look at `gear-dist doctor`"
        )
    return torch.device("cuda", local_rank)


def choose_precision(name: str, device: torch.device) -> str:
    """'bf16' or 'fp32': what `engine.precision` means on a device; auto is bf16 on CUDA."""
    if name != "auto":
        return name
    return "bf16" if device.type == "cuda" else "fp32"


def choose_algorithms(*, deterministic: bool) -> None:
    """What engine.deterministic means for this process; before its first operation on a GPU.

    Without it, cuDNN measures its algorithms for each shape and takes the fastest: every shape of a
    run comes again in each step. Which one wins may differ from start to start, and so the bits.
    """
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        # cuBLAS is deterministic only with a workspace of fixed size; torch refuses products else.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def place(module: Module, device: torch.device) -> Module:
    """Move a network that is not trained to a device, in the memory format that is fast there."""
    module.to(device)
    if device.type in CHANNELS_LAST_DEVICES:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module
