"""Resolves run.device and engine.precision (autocast dtype) for this machine."""

from typing import Literal

import torch

from gear_dist.errors import ConfigError

DeviceName = Literal["auto", "cuda", "cpu"]


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
