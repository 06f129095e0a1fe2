"""Checkpoints across numbers of workers, and steps that go wrong: what runs in the workers."""

import shutil
from collections.abc import Sequence
from typing import Any

import torch
import training_case as case
from torch import Tensor

from gear_dist.config.schema import RunConfig
from gear_dist.distributed import collectives, device
from gear_dist.distributed.worker_context import TrainResult
from gear_dist.errors import ConfigError, NumericError, StorageError
from gear_dist.runs.run_folder import RunFolder
from gear_dist.storage.local import FileStorage
from gear_dist.training.engine import TrainingEngine
from gear_dist.training.trainer import Trainer, open_trainer, train_worker


def save_again(rank: int, world_size: int, configs: list[RunConfig]) -> None:
    """Worker: restore each run's newest checkpoint, and save what was restored."""
    for config in configs:
        with open_trainer(config, case.StoppingContext(rank, world_size)) as trainer:
            trainer.save()
            trainer.checkpoints.wait()


class Spoiler:
    """Makes one network's gradients NaN on one rank, at the given backwards, counted from 1."""

    def __init__(self, network: str, calls: Sequence[int]):
        self._network = network
        self._spoilt = calls
        self._calls = 0
        self._backward = TrainingEngine.backward

    def __enter__(self) -> None:
        spoiler = self

        def backward(engine: TrainingEngine, loss: Tensor) -> None:
            if engine.name == spoiler._network:
                spoiler._calls += 1
                if spoiler._calls in spoiler._spoilt:
                    # The loss stays finite; the root's slope at 0 is not.
                    loss = loss + (loss * 0).sqrt()
            spoiler._backward(engine, loss)

        TrainingEngine.backward = backward  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        TrainingEngine.backward = self._backward  # type: ignore[method-assign]


def train_spoiled(
    rank: int, world_size: int, cases: list[tuple[RunConfig, Sequence[int]]], network: str
) -> list[str]:
    """Worker: train with gradients spoilt on rank 1 at the given backwards; how each run ended."""
    ends = []
    for config, calls in cases:
        with Spoiler(network, calls if rank == 1 else []):
            try:
                ends.append(case.train(config, rank, world_size).state)
            except NumericError as error:
                ends.append(str(error))
    return ends


def skip_one_step(
    rank: int, world_size: int, configs: list[RunConfig], network: str
) -> list[tuple[list[str], int, set[str]]]:
    """Worker: a good step, a spoilt one, a good one, without a checkpoint.

    Returns, by configuration: what the spoilt step moved, how many steps were skipped, and the
    networks that the last step moved.
    """
    found = []
    for config in configs:
        with open_trainer(config, case.StoppingContext(rank, world_size)) as trainer:
            stage = trainer.stages[0]
            batches = iter(trainer.loader)
            trainer.run_step(stage, batches)
            before = _snapshot(trainer)
            with Spoiler(network, [1] if rank == 1 else []):
                trainer.run_step(stage, batches)
            between = _snapshot(trainer)
            trainer.run_step(stage, batches)
            after = _snapshot(trainer)
            moved = {key.split(".")[0] for key in after if not torch.equal(after[key], before[key])}
            found.append((case.differences(before, between), trainer.guard.num_skipped, moved))
    return found


def lose_the_folder(rank: int, world_size: int, config: RunConfig) -> tuple[str, dict[str, Any]]:
    """Worker: a run whose checkpoints lie elsewhere is stopped, loses its run folder, and goes on.

    Returns how it ended, and the newest checkpoint.
    """
    case.train(config, rank, world_size, 3)
    collectives.barrier()
    if rank == 0:
        shutil.rmtree(config.run.folder)
    collectives.barrier()
    result = case.train(config, rank, world_size)
    return result.state, case.newest_state(config)


def train_refused(
    rank: int, world_size: int, cases: list[tuple[RunConfig, str]]
) -> list[tuple[str, list[str]]]:
    """Worker: train while the disk refuses what has a word in its name, on rank 1.

    Returns how each run ended, and the lines that its host was told.
    """
    found = []
    whole = FileStorage.writer
    for config, word in cases:

        def writer(storage: FileStorage, key: str, word: str = word) -> Any:
            if word in key and rank == 1:
                raise StorageError(f"{key}: the disk is full; free some space and run again")
            return whole(storage, key)

        FileStorage.writer = writer  # type: ignore[method-assign]
        context = case.StoppingContext(rank, world_size)
        try:
            end: str = train_worker(config, context).state
        except StorageError as error:
            end = str(error)
        finally:
            FileStorage.writer = whole  # type: ignore[method-assign]
        found.append((end, [report.message for report in context.reports if report.message]))
    return found


def channels_last(rank: int, world_size: int, config: RunConfig) -> tuple[int, list[str]]:
    """Worker: weights that lie in another order, as at stage 0 on CUDA, saved and restored.

    Returns how many parameters lie so, and what the restored state differs in.
    """
    with open_trainer(config, case.StoppingContext(rank, world_size)) as trainer:
        module = trainer.networks.engines["tokenizer"].module
        module.to(memory_format=torch.channels_last)
        batches = iter(trainer.loader)
        for _ in range(2):
            trainer.run_step(trainer.stages[0], batches)
        trainer.save()
        trainer.checkpoints.wait()
        saved = _snapshot(trainer)
        trainer.run_step(trainer.stages[0], batches)
        with trainer.checkpoints.open_newest() as reader:
            trainer.networks.load_state_dict(reader.state["networks"], reader)
        turned = sum(not p.is_contiguous() for p in module.parameters())
        return turned, case.differences(saved, _snapshot(trainer))


def channels_last_frozen(rank: int, world_size: int, config: RunConfig) -> tuple[int, list[str]]:
    """Worker: a frozen tokenizer laid out as on CUDA, saved and restored into another of its kind.

    Returns how many of its tensors lie so, and which of the restored ones differ.
    """
    device.CHANNELS_LAST_DEVICES = ("cpu",)
    with open_trainer(config, case.StoppingContext(rank, world_size)) as trainer:
        trainer.run()
        frozen = trainer.networks.frozen_tokenizer
        assert frozen is not None
        saved = {name: value.clone() for name, value in frozen.state_dict().items()}
        with torch.no_grad():
            for value in frozen.state_dict().values():
                value.zero_()
        with trainer.checkpoints.open_newest() as reader:
            trainer.networks.load_state_dict(reader.state["networks"], reader)
        restored = frozen.state_dict()
        turned = sum(not value.is_contiguous() for value in restored.values())
        return turned, [name for name in saved if not torch.equal(saved[name], restored[name])]


def go_back_and_fork(rank: int, world_size: int, config: RunConfig) -> dict[str, Any]:
    """Worker: a run, the same set back to its step 2 and then made longer, and a fork of it."""

    def train(changed: RunConfig) -> TrainResult:
        return case.train(changed, rank, world_size)

    train(config)
    found: dict[str, Any] = {"straight": case.newest_state(config)}
    [earlier] = RunFolder(config.run.folder).checkpoints.glob("step-00000002-*")
    back = case.with_overrides(config, f"run.resume={earlier}")
    train(back)
    found |= {"earlier": str(earlier), "again": case.newest_state(config)}
    found["longer"] = train(case.with_overrides(back, "stages.joint.steps=6"))
    fork = case.named(back, "fork")
    train(fork)
    found["fork"] = case.newest_state(fork)
    try:
        train(case.with_overrides(case.named(back, "other"), "run.seed=5"))
    except ConfigError as error:
        found["other"] = str(error)
    return found


def _snapshot(trainer: Trainer) -> dict[str, Tensor]:
    return {f"{p.key}@{p.start}": p.values.clone() for p in trainer.networks.shards()}


def states(config: RunConfig) -> dict[str, Any]:
    """Tensors of the newest checkpoint without random states, which belong to a rank."""
    tensors = case.newest_state(config)["tensors"]
    return {key: value for key, value in tensors.items() if not key.startswith("random.")}
