"""Activation checkpointing: a block's inner tensors are computed again in its backward."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def activation_checkpoint(forward: Callable[..., Any], *args: Any, enabled: bool) -> Any:
    """forward(*args), which keeps only its arguments for the backward where `enabled`.

    The recomputation replays random states, autocast and the modules' training mode, so that
    gradients are the same bit for bit; so a network must keep its training mode and frozen
    parameters until the backward has returned (see `TrainingEngine.frozen`). Not re-entrant:
    frozen parameters and ZeRO-3 need it so. Without gradients nothing is kept anyway.
    """
    if not enabled or not torch.is_grad_enabled():
        return forward(*args)
    return checkpoint(forward, *args, use_reentrant=False)
