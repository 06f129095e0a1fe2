"""`gear-dist train --dry-run`: everything that can be known without training."""

import os
from typing import Literal

from gear_dist.config import RunConfig
from gear_dist.data.corpus import open_corpus
from gear_dist.data.manifest import Manifest
from gear_dist.errors import DataError
from gear_dist.memory_estimate import ParameterCounts, estimate_memory, format_estimate
from gear_dist.run_folder import RunFolder
from gear_dist.start import open_start


def dry_run(config: RunConfig) -> None:
    """Check the run folder, the shards and the teacher, and print an estimate of memory.

    Raises:
        UserError: what `train` would end with.
    """
    folder = RunFolder(config.run.folder)
    held = folder.holds_run()
    if held:
        folder.check_same_run(config)
    print(f"run folder {folder.path}: {'holds this run, would go on' if held else 'new'}")
    start = None if held else open_start(config)
    if start is not None:
        print(f"starts from {start.path}: {', '.join(start.weights)}")
    world_size, device = _placement(config)
    micro_batch = config.engine.micro_batch(world_size)
    print(f"{config.run.launcher}: {world_size} workers on {device}, {micro_batch} images each")
    num_samples = sum(
        check_corpus(config, address).facts.num_samples for address in config.data.train_addresses
    )
    filled_up = config.data.tail == "repeat"
    steps = (num_samples - filled_up) // config.engine.global_batch + filled_up
    if steps == 0:
        raise DataError(
            f"data.train={config.data.train}: {num_samples} images are fewer than "
            f"engine.global_batch={config.engine.global_batch}: lower that or add images"
        )
    epochs = config.stages.total_steps * config.engine.global_batch / num_samples
    print(f"{config.stages.total_steps} steps, {steps} an epoch, {epochs:.1f} epochs")
    if config.data.validation:
        check_corpus(config, config.data.validation)
    counts = count_parameters(config)
    on_cuda = device == "cuda"
    wanted = config.engine.precision
    usual: Literal["bf16", "fp32"] = "bf16" if on_cuda else "fp32"
    estimate = estimate_memory(
        config,
        counts,
        world_size=world_size,
        precision=usual if wanted == "auto" else wanted,
        on_cuda=on_cuda,
    )
    print(format_estimate(estimate))
    print("dry run: nothing was trained or written")


def check_corpus(config: RunConfig, address: str) -> Manifest:
    """Read the manifest and compare it with the shards that are there and with the run.

    Raises:
        DataError: the corpus is not there, incomplete, or has too many classes.
    """
    storage, manifest = open_corpus(address, config.data.endpoint)
    facts = manifest.facts
    folder = "shards/" if facts.schema_version else ""
    found = {item.key: item.bytes for item in storage.list(folder)}
    for shard in manifest.shards:
        if found.get(shard.key) != shard.bytes:
            problem = "has another size than" if shard.key in found else "is missing, but is in"
            raise DataError(
                f"{storage.address}/{shard.key}: {problem} the manifest: shard the corpus again"
            )
    if len(facts.classes) > config.generator.num_classes:
        raise DataError(
            f"{storage.address}: has {len(facts.classes)} classes, which is more than "
            f"generator.num_classes={config.generator.num_classes}: raise that"
        )
    size = sum(shard.bytes for shard in manifest.shards)
    print(
        f"{storage.address}: {facts.num_samples:,} images, {len(facts.classes)} classes, "
        f"{facts.num_shards:,} shards, {size / 1e6:,.1f} MB"
    )
    return manifest


def _placement(config: RunConfig) -> tuple[int, str]:
    """Workers and device as this machine would have them; a cluster may have others."""
    import torch

    from gear_cluster.local_launch import resolve_device

    if config.run.launcher == "ray" and os.environ.get("RAY_ADDRESS"):
        device: str = "cpu" if config.run.device == "auto" else config.run.device
        print(f"RAY_ADDRESS is set: the cluster is not asked; {device} is assumed")
    else:
        device = resolve_device(config.run.device)
    if config.run.launcher == "local":
        return int(os.environ.get("WORLD_SIZE", "1")), device
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    return config.run.workers or gpus or 2, device


def count_parameters(config: RunConfig) -> ParameterCounts:
    """Build the networks without memory, load the teacher, and count.

    Raises:
        UserError: the teacher cannot be loaded.
    """
    import torch
    from torch import nn

    from gear_dist.generator import build_aligned_generator
    from gear_dist.losses.adversarial import PatchDiscriminator
    from gear_dist.teachers import load_teacher
    from gear_dist.tokenizers import build_tokenizer

    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    teachers = []
    if config.alignment.enabled and config.stages.joint.steps + config.stages.generator.steps > 0:
        size, grid = config.data.image_size, config.grid_size
        teachers = [load_teacher(config.teacher, image_size=size, grid_size=grid)]
    with torch.device("meta"):
        return ParameterCounts(
            tokenizer=count(build_tokenizer(config.tokenizer)),
            discriminator=count(PatchDiscriminator(config.discriminator)),
            generator=count(build_aligned_generator(config, [t.width for t in teachers])),
            teacher=sum(map(count, teachers)),
        )
