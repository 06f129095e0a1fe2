"""The joint step of each quantizer family and of the straight-through estimator, on the reference's
small networks at random weights.

The discriminator's options go along: LeCam with both families, group norm with one.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import joint_step_case as case
import torch

from gear_dist.config.schema import RunConfig
from gear_dist.training.engine import prepare_deepspeed
from gear_dist.training.networks import Networks, build_modules

FAMILIES: dict[str, dict[str, Any]] = {
    "lfq": {"quantizer": "lfq", "code_width": 6, "codebook_size": 64},
    "ibq": {"quantizer": "ibq", "code_width": 16, "codebook_size": 64},
    "straight-through": {},
}
"""Settings of the tokenizer; the last is VQ with the other estimator."""
DISCRIMINATORS: dict[str, dict[str, Any]] = {
    "lfq": {"lecam_weight": 0.5, "lecam_decay": 0.5, "norm": "group", "norm_groups": 4},
    "ibq": {"lecam_weight": 0.5, "lecam_decay": 0.5},
}


def family_config(family: str, zero_stage: int) -> RunConfig:
    """The reference joint step ("vq") with another tokenizer or estimator."""
    config = case.reference_config(zero_stage, case.GENTLE_RATE)
    tokenizer = dataclasses.replace(config.tokenizer, **FAMILIES.get(family, {}))
    discriminator = dataclasses.replace(config.discriminator, **DISCRIMINATORS.get(family, {}))
    alignment = config.alignment
    if family == "straight-through":
        alignment = dataclasses.replace(alignment, estimator="straight-through")
    return dataclasses.replace(
        config, tokenizer=tokenizer, discriminator=discriminator, alignment=alignment
    )


def several_steps_each(
    rank: int, world_size: int, choices: Sequence[tuple[str, int]], steps: int
) -> list[tuple[dict[str, float], Any]]:
    """Worker: for each (family, ZeRO stage), steps on this rank's share; metrics and weights."""
    device = torch.device("cpu")
    prepare_deepspeed(device)
    batch = case.reference_batch()
    results = []
    for family, zero_stage in choices:
        config = family_config(family, zero_stage)
        torch.manual_seed(0)
        networks = Networks(
            "joint",
            build_modules(config, (20,)),
            {},
            engine=config.engine,
            optimizer=config.optimizer,
            world_size=world_size,
            device=device,
        )
        before = case.live_states(networks)
        numbers = case.take_steps(
            networks, config, [case.split_batch(batch, rank, world_size)], steps
        )
        results.append((numbers, before, case.live_states(networks)))
        networks.close()
    return results
