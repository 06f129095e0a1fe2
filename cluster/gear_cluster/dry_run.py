"""`gear-dist train --dry-run`: everything that can be known without training."""

import os

import torch

from gear_cluster.rendezvous import read_processes
from gear_data_prep.corpus_tools.duplicates import warn_of_shared
from gear_dist.checkpoints.address import check_address
from gear_dist.config.data import DataConfig
from gear_dist.config.run import RunSection
from gear_dist.config.schema import RunConfig
from gear_dist.data.corpus import Corpus, check_same_classes, open_corpus
from gear_dist.data.corpus_summary import (
    CorpusSummary,
    check_contents,
    classes_without_images,
    warn_of_empty_classes,
)
from gear_dist.data.selection import find_unmatched, select_samples
from gear_dist.errors import DataError
from gear_dist.losses.perceptual import load_lpips
from gear_dist.models.teachers import load_teachers
from gear_dist.planning.memory import format_estimate
from gear_dist.runs.run_folder import RunFolder
from gear_dist.training.conditions import load_conditions
from gear_dist.training.init_from import check_initial_encoder, open_init_from


def dry_run(config: RunConfig) -> None:
    """Check the run folder, the shards, the frozen networks, and print an estimate of memory.

    Raises:
        UserError: what `train` would end with.
    """
    check_address(config.run, config.checkpoint, config.data)
    folder = RunFolder(config.run.folder)
    held = folder.holds_run()
    if held:
        folder.check_same_run(config)
    print(f"run folder {folder.path}: {'holds this run, would resume' if held else 'new'}")
    start = None if held else open_init_from(config)
    if start is not None:
        print(f"starts from {start.path}: {', '.join(start.weights)}")
    world_size, device = _placement(config.run)
    micro_batch = config.engine.micro_batch(world_size)
    print(f"{config.run.launcher}: {world_size} workers on {device}, micro-batch {micro_batch}")
    num_samples = sum(
        contents.num_samples for contents in _check_training(config.data, config.num_label_classes)
    )
    filled_up = config.data.tail == "repeat"
    steps = (num_samples - filled_up) // config.engine.global_batch + filled_up
    if steps == 0:
        raise DataError(
            f"data.train={config.data.train}: {num_samples} images are fewer than "
            f"engine.global_batch={config.engine.global_batch}: lower that or add images"
        )
    epochs = config.stages.total_steps * config.engine.global_batch / num_samples
    print(f"{config.stages.total_steps:,} steps, {steps:,} per epoch, {epochs:,.1f} epochs")
    if config.alignment.enabled and config.stages.has_generator:
        size = config.data.image_size
        load_teachers(config.teachers, image_size=size, grid_size=config.grid_size)
    if config.reads_captions:
        check_initial_encoder(config, load_conditions(config, torch.device("cpu")))
    if config.stages.has_tokenizer:
        load_lpips(config.losses)
    _print_memory(config, world_size, on_cuda=device == "cuda")
    print("dry run: nothing was trained or written")


def _check_training(data: DataConfig, num_classes: int | None) -> list[CorpusSummary]:
    """Check all corpora, and that their classes are the same.

    Args:
        num_classes: see `check_corpus`.
    """
    opened = [open_corpus(address, data.endpoint) for address in data.train_addresses]
    selection = select_samples(opened, data)
    found = {
        address: check_corpus(corpus, selection.contents(number), data, num_classes)
        for number, (address, corpus) in enumerate(zip(data.train_addresses, opened, strict=True))
    }
    for line in find_unmatched([corpus.manifest.info for corpus in opened], data):
        print(f"WARNING: {line}")
    if licenses := selection.licenses():
        print("licences: " + ", ".join(f"{name} {count:,}" for name, count in licenses[:10]))
    first, *others = found.items()
    needs_classes = data.captions == "off" and num_classes is not None
    for address, contents in others if needs_classes else ():
        check_same_classes(first[0], first[1].classes, address, contents.classes)
    if data.validation:
        corpus = open_corpus(data.validation, data.endpoint)
        contents = select_samples([corpus], data).contents(0)
        held_out = check_corpus(corpus, contents, data, None)  # for pictures
        if held_out.classes != first[1].classes:
            print(
                f"WARNING: data.validation={data.validation}: its classes are not those of "
                "data.train, so `gear-dist evaluate` will refuse it: shard both from the same "
                "source"
            )
    if data.validation in found:
        print(f"WARNING: data.validation={data.validation} is also a training corpus")
    elif data.validation:
        _compare_splits(list(found), data)
    return list(found.values())


def _compare_splits(addresses: list[str], data: DataConfig) -> None:
    """Warn of images of validation in a training corpus, by the hashes in both manifests."""
    held_out = open_corpus(data.validation, data.endpoint)
    for address in addresses:
        train = open_corpus(address, data.endpoint)
        stock = [c.storage.address for c in (train, held_out) if not c.manifest.info.schema_version]
        if stock:
            print(f"{stock[0]}: stock tars: not searched for images of both splits")
        elif line := warn_of_shared(train.storage, held_out.storage):
            print(f"WARNING: {line}")


def _print_memory(config: RunConfig, world_size: int, *, on_cuda: bool) -> None:
    """The estimate of the stage that takes the most."""
    from gear_dist.planning.hardware import make_rates
    from gear_dist.planning.plan import plan_costs

    plan = plan_costs(config, world_size=world_size, rates=make_rates({}), on_cuda=on_cuda)
    largest = max(plan.stages, key=lambda stage: stage.memory.total_bytes)
    print(f"stage {largest.stage}: {format_estimate(largest.memory)}")


def check_corpus(
    corpus: Corpus, contents: CorpusSummary, data: DataConfig, num_classes: int | None
) -> CorpusSummary:
    """Compare a manifest with the shards that are there and with the run, and say it.

    Args:
        corpus: the corpus.
        contents: what the run takes of it.
        data: its settings.
        num_classes: that images may have; None: no class is needed.

    Raises:
        DataError: the corpus is not there, incomplete, or lacks classes or captions that the run
            needs, or has too many classes.
    """
    storage, manifest = corpus
    info = manifest.info
    folder = "shards/" if info.schema_version else ""
    found = {item.key: item.bytes for item in storage.list(folder)}
    for shard in manifest.shards:
        if found.get(shard.key) != shard.bytes:
            problem = "has another size than" if shard.key in found else "is missing, but is in"
            raise DataError(
                f"{storage.address}/{shard.key}: {problem} the manifest: shard the corpus again"
            )
    size = sum(shard.bytes for shard in manifest.shards)
    taken = "" if contents.num_samples == info.num_samples else f" taken of {info.num_samples:,}"
    print(
        f"{storage.address}: {contents.describe()}{taken}; {info.num_shards:,} shards, "
        f"{size / 1e6:,.1f} MB"
    )
    for line in check_contents(storage.address, contents, data, num_classes):
        print(f"WARNING: {line}")
    if num_classes is not None and data.captions == "off" and info.schema_version:
        empty = classes_without_images(storage, contents)
        for line in warn_of_empty_classes(contents.classes, empty):
            print(f"WARNING: {storage.address}: {line}")
    return contents


def _placement(run: RunSection) -> tuple[int, str]:
    """Workers and device as this machine would have them; a cluster may have others."""
    import torch

    from gear_dist.distributed.device import choose_device

    if run.launcher == "ray" and os.environ.get("RAY_ADDRESS"):
        device: str = "cpu" if run.device == "auto" else run.device
        print(f"RAY_ADDRESS is set: the cluster is not contacted; assuming {device}")
    else:
        device = choose_device(run.device).type
    if run.launcher == "local":
        return read_processes().world_size, device
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    return run.workers or gpus or 2, device
