"""A whole training step with many tokens and codes through tiny networks, under a watch."""

import torch

from gear_dist.config.data import DataConfig
from gear_dist.config.models import DiscriminatorConfig, GeneratorConfig, TokenizerConfig
from gear_dist.config.schema import RunConfig
from gear_dist.config.training import AlignmentConfig, EngineConfig, LossConfig
from gear_dist.models.generator import ClassCondition
from gear_dist.training.engine import prepare_deepspeed
from gear_dist.training.networks import Networks, build_modules
from gear_dist.training.steps import MicroBatch, train_micro_batch
from largest_tensor import LargestTensor

CODES, GRID, FEATURES = 16384, 32, 10
TOKENS_PER_IMAGE = GRID * GRID
CPU = torch.device("cpu")


CODE_WIDTHS = {"vq": 8, "lfq": 14, "ibq": 32}


def step_config(images: int, kernels: str, family: str = "vq", **engine) -> RunConfig:
    """64-pixel images, halved once: 1024 tokens each; every other width is small."""
    return RunConfig(
        data=DataConfig(image_size=2 * GRID),
        tokenizer=TokenizerConfig(
            quantizer=family,
            codebook_size=CODES,
            code_width=CODE_WIDTHS[family],
            channels=8,
            channel_multipliers=(1, 1),
            num_res_blocks=1,
            latent_channels=8,
            norm_groups=4,
        ),
        generator=GeneratorConfig(width=32, num_layers=2, num_heads=2, num_classes=4, tap_layer=1),
        discriminator=DiscriminatorConfig(width=8, num_layers=2),
        losses=LossConfig(lpips_weight=0.0),
        alignment=AlignmentConfig(projector_width=32),
        engine=EngineConfig(global_batch=images, kernels=kernels, **engine),
    )


def largest_tensor_of_a_step(rank: int, images: int, kernels: str, engine: dict):
    """Worker: elements of the largest tensor of one joint step, and what made it."""
    prepare_deepspeed(CPU)
    config = step_config(images, kernels, **engine)
    torch.manual_seed(0)
    networks = Networks(
        "joint",
        build_modules(config, (FEATURES,)),
        {},
        engine=config.engine,
        optimizer=config.optimizer,
        world_size=1,
        device=CPU,
    )
    batch = MicroBatch(
        torch.rand(images, 3, 2 * GRID, 2 * GRID) * 2 - 1,
        ClassCondition(torch.arange(images) % 4),
        [torch.randn(images, TOKENS_PER_IMAGE, FEATURES)],
        [image % 4 == 0 for image in range(images)],
    )
    with LargestTensor() as watch:
        train_micro_batch(networks, batch, config, 0, None)
        networks.step(1.0)
        networks.update_averages()
    networks.close()
    return watch.elements, watch.operation
