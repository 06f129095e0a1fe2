"""The reference joint step, set up through the project's own configuration and engines."""

from typing import Any

import torch
from torch import Tensor

from gear_dist.config.data import DataConfig
from gear_dist.config.models import DiscriminatorConfig, GeneratorConfig, TokenizerConfig
from gear_dist.config.schema import RunConfig
from gear_dist.config.training import (
    AlignmentConfig,
    EngineConfig,
    LossConfig,
    OptimizerConfig,
    StageConfig,
    StagesConfig,
)
from gear_dist.models.generator import ClassCondition
from gear_dist.training.engine import prepare_deepspeed
from gear_dist.training.networks import Networks, NetworkStates, build_modules
from gear_dist.training.stages import Stage
from gear_dist.training.steps import MicroBatch, train_micro_batch
from reference_numbers import part, read_reference

STAGE = Stage("joint", 0, 100, 1.0)
RATE = 0.1
GENTLE_RATE = 0.01
"""At the reference's rate five steps amplify fp32 rounding a thousandfold, one rank or two."""


def reference_config(zero_stage: int = 0, rate: float = RATE, **engine: Any) -> RunConfig:
    """The configuration of joint_step.safetensors, by default at its learning rate."""
    config, numbers = read_reference("joint_step")
    tok, gen, disc = config["tokenizer"], config["generator"], config["discriminator"]
    return RunConfig(
        data=DataConfig(image_size=numbers["images"].shape[-1]),
        tokenizer=TokenizerConfig(
            codebook_size=tok["codebook_size"],
            code_width=tok["codebook_dim"],
            channels=tok["ch"],
            channel_multipliers=tuple(tok["ch_mult"]),
            num_res_blocks=tok["num_res_blocks"],
            latent_channels=tok["z_channels"],
            commit_weight=tok["commit_beta"],
            entropy_weight=tok["entropy_ratio"],
            entropy_temperature=tok["entropy_temperature"],
        ),
        generator=GeneratorConfig(
            width=gen["dim"],
            num_layers=gen["n_layer"],
            num_heads=gen["n_head"],
            num_classes=gen["num_classes"],
            residual_dropout=0.0,
            feed_forward_dropout=0.0,
            token_dropout=0.0,
            class_dropout=0.0,
            tap_layer=config["tap_layer"],
        ),
        discriminator=DiscriminatorConfig(
            disc["ndf"], disc["n_layers"], weight=config["gan_weight"]
        ),
        losses=LossConfig(lpips_weight=config["perceptual_weight"]),
        alignment=AlignmentConfig(
            soft_temperature=config["soft_temperature"],
            soft_weight=config["align_soft_weight"],
            hard_weight=config["align_hard_weight"],
            projector_width=config["projector"][1],
        ),
        optimizer=OptimizerConfig(
            name="sgd",
            tokenizer_lr=rate,
            discriminator_lr=rate,
            generator_lr=rate,
            clip_norm=config["max_grad_norm"],
            ema_decay=0.9,
        ),
        stages=StagesConfig(joint=StageConfig(STAGE.steps)),
        engine=EngineConfig(global_batch=4, zero_stage=zero_stage, **engine),
    )


def reference_states(prefix: str) -> NetworkStates:
    """Networks before or after the step, as `Networks` takes them."""
    _, numbers = read_reference("joint_step")
    states = {
        "tokenizer": part(numbers, f"{prefix}.tokenizer."),
        "discriminator": {
            f"discriminator.{k}": v for k, v in part(numbers, f"{prefix}.discriminator.").items()
        },
        "generator": {
            f"generator.{k}": v for k, v in part(numbers, f"{prefix}.generator.").items()
        },
    }
    for key, value in part(numbers, f"{prefix}.projector.").items():
        states["generator"][f"projectors.0.{key}"] = value
    return states


def reference_batch() -> MicroBatch:
    """The stored images, labels and teacher features."""
    _, numbers = read_reference("joint_step")
    labels = numbers["labels"]
    return MicroBatch(
        numbers["images"], ClassCondition(labels), [numbers["teacher"]], [False] * len(labels)
    )


def split_batch(batch: MicroBatch, index: int, parts: int) -> MicroBatch:
    """The index-th of equal parts of a batch."""

    size = len(batch.images) // parts
    images = slice(index * size, (index + 1) * size)

    def cut(x: Tensor) -> Tensor:
        return x[images]

    features = [cut(f) for f in batch.features]
    condition = ClassCondition(cut(batch.condition.labels_B))
    return MicroBatch(cut(batch.images), condition, features, batch.drop[images])


def build_networks(config: RunConfig, world_size: int) -> Networks:
    """The joint stage's networks at the reference's initial weights."""
    prepare_deepspeed(torch.device("cpu"))
    return Networks(
        "joint",
        build_modules(config, (20,)),
        reference_states("before"),
        engine=config.engine,
        optimizer=config.optimizer,
        world_size=world_size,
        device=torch.device("cpu"),
    )


def take_steps(
    networks: Networks, config: RunConfig, micro_batches: list[MicroBatch], steps: int
) -> dict[str, float]:
    """Optimizer steps on the same micro-batches each; the last one's metrics and norms."""
    metrics: dict[str, Tensor] = {}
    for step in range(steps):
        for batch in micro_batches:
            metrics, _ = train_micro_batch(networks, batch, config, step, None)
            networks.step(1.0)
        networks.update_averages()
    numbers = {name: value.item() for name, value in metrics.items()}
    norms = {f"grad_norm_{n}": float(e.grad_norm) for n, e in networks.engines.items()}
    return numbers | norms


def live_states(networks: Networks) -> NetworkStates:
    """Whole networks without averaging. Collective."""
    return {name: engine.full_state() for name, engine in networks.engines.items()}


def one_reference_step_each(rank: int, cases: list[tuple[int, str]]):
    """Worker: for each (ZeRO stage, kernels) one step; metrics and the networks after."""
    results = []
    for zero_stage, kernels in cases:
        config = reference_config(zero_stage, kernels=kernels)
        networks = build_networks(config, 1)
        numbers = take_steps(networks, config, [reference_batch()], 1)
        results.append((numbers, live_states(networks)))
        networks.close()
    return results


def several_steps_each(rank: int, world_size: int, zero_stages: list[int], steps: int):
    """Worker: for each stage, steps on this rank's share; live networks and averages."""
    results = []
    for zero_stage in zero_stages:
        config = reference_config(zero_stage, GENTLE_RATE)
        networks = build_networks(config, world_size)
        share = split_batch(reference_batch(), rank, world_size)
        numbers = take_steps(networks, config, [share], steps)
        results.append((numbers, live_states(networks), networks.averaged_state_dicts()))
        networks.close()
    return results
