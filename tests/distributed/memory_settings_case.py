"""The reference joint step under the settings that trade memory for something else."""

import dataclasses
from typing import Any

import joint_step_case as case
import torch

from gear_dist.config.schema import RunConfig
from gear_dist.training import engine as engine_module
from gear_dist.training.steps import train_micro_batch

STEPS = 2


def changed(config: RunConfig, **settings: Any) -> RunConfig:
    """The configuration with settings replaced, given as section__name=value."""
    for key, value in settings.items():
        section, _, name = key.partition("__")
        part = dataclasses.replace(getattr(config, section), **{name: value})
        config = dataclasses.replace(config, **{section: part})
    return config


def steps_each(rank: int, world_size: int, configs: list[RunConfig]) -> list[tuple[Any, Any, Any]]:
    """Worker: metrics with largest gradients, live networks and averages after some steps.

    A step's micro-batches are this rank's share of the reference batch, cut into equal parts.
    """
    found = []
    for config in configs:
        networks = case.build_networks(config, world_size)
        share = case.split_batch(case.reference_batch(), rank, world_size)
        parts = config.engine.accumulation
        micro_batches = [case.split_batch(share, i, parts) for i in range(parts)]
        torch.manual_seed(rank)
        numbers = case.take_steps(networks, config, micro_batches, STEPS)
        for batch in micro_batches:
            train_micro_batch(networks, batch, config, STEPS, None)
            if networks.engines["tokenizer"].ends_step:
                largest = {n: e.gradient_size().item() for n, e in networks.engines.items()}
            networks.step(1.0)
        numbers |= {f"largest gradient of {name}": value for name, value in largest.items()}
        found.append((numbers, case.live_states(networks), networks.averaged_state_dicts()))
        networks.close()
    return found


def sizes_of_late_gradients(
    rank: int, world_size: int, configs: list[RunConfig]
) -> list[dict[str, tuple[float, float]]]:
    """Worker: each network's gradient size, on time, and where copies to the host are late.

    As on CUDA: the masters' gradients hold something else until the device is waited for.
    """
    found = []
    for config in configs:
        networks = case.build_networks(config, world_size)
        batch = case.split_batch(case.reference_batch(), rank, world_size)
        train_micro_batch(networks, batch, config, 0, None)
        sizes = {}
        for name, engine in networks.engines.items():
            right = engine.gradient_size().item()
            masters = [m for m in engine.optimizer_parameters() if m.grad is not None]
            gradients = [master.grad.clone() for master in masters]
            for master in masters:
                master.grad.zero_()

            def arrive(_device: torch.device, masters=masters, gradients=gradients) -> None:
                for master, gradient in zip(masters, gradients, strict=True):
                    master.grad.copy_(gradient)

            finish, engine_module.finish_copies = engine_module.finish_copies, arrive
            try:
                sizes[name] = (right, engine.gradient_size().item())
            finally:
                engine_module.finish_copies = finish
        networks.step(1.0)
        networks.close()
        found.append(sizes)
    return found
