"""AdamW and SGD whose step can be skipped."""

from typing import Any

import torch
from torch import nn

from gear_dist.config.training import OptimizerConfig


class _Skipping:
    """Mixed into an optimizer: its step does nothing while `skips`.

    DeepSpeed's own step still runs around it, which clears gradients and counts.
    """

    skips = False

    def step(self, closure: Any = None) -> Any:
        """The optimizer's step, or nothing."""
        return None if self.skips else super().step(closure)  # type: ignore[misc]


class SkippableSGD(_Skipping, torch.optim.SGD):
    """SGD whose steps can be skipped."""


class SkippableAdamW(_Skipping, torch.optim.AdamW):
    """AdamW whose steps can be skipped."""


def build_optimizer(settings: OptimizerConfig, module: nn.Module) -> SkippableSGD | SkippableAdamW:
    """The optimizer of `optimizer.name` over a module's trained parameters."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    # The rate is set before every step; this one is never used.
    if settings.name == "sgd":
        return SkippableSGD(parameters, lr=1.0)
    return SkippableAdamW(
        parameters,
        lr=1.0,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,  # on CPU, too: stage 0 has hundreds of small tensors, each several calls else
    )
