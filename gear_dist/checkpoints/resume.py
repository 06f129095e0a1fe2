"""Chooses and checks the checkpoint that a run resumes from."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gear_dist.checkpoints.address import check_address, checkpoint_storage
from gear_dist.checkpoints.manager import CheckpointManager, UnusableCheckpointsError, open_verified
from gear_dist.checkpoints.owner import Claim, Ownership, claim_address, is_written_by
from gear_dist.checkpoints.reader import CheckpointReader
from gear_dist.checkpoints.retention import Retention
from gear_dist.config.compare import differing_settings
from gear_dist.config.run import RunSection
from gear_dist.config.schema import RunConfig
from gear_dist.config.training import EngineConfig
from gear_dist.distributed import collectives
from gear_dist.errors import ConfigError, DataError
from gear_dist.runs.run_folder import RunFolder
from gear_dist.storage.addresses import split_address
from gear_dist.storage.base import Storage
from gear_dist.storage.open import open_storage


def open_manager(
    config: RunConfig,
    beat: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda line: None,
) -> CheckpointManager:
    """The run's checkpoints; what its killed writers left there is removed. Collective.

    Args:
        beat: called while a checkpoint is written or read.
        say: takes a line before a wait for another run's heartbeat. On rank 0.

    Raises:
        ConfigError: the place is another run's, or holds something else.
        UserError: it cannot be read or written.
    """
    storage = checkpoint_storage(config.run, config.checkpoint, config.data.endpoint)
    held: list[Ownership] = []
    collectives.on_rank_0(lambda: held.append(_take_address(config, storage, say)))
    return CheckpointManager(
        storage,
        Retention(config.checkpoint),
        held[0] if held else None,
        asynchronous=config.checkpoint.asynchronous,
        beat=beat,
    )


def _take_address(config: RunConfig, storage: Storage, say: Callable[[str], None]) -> Ownership:
    """Make the address the run's, and the run known to its folder. On rank 0."""
    check_address(config.run, config.checkpoint, config.data)
    folder = RunFolder(config.run.folder)
    claim = Claim(
        folder.read_id(),
        config.run.name,
        str(Path(folder.path).absolute()),
        config.checkpoint.take_over,
        shared=bool(config.checkpoint.address),
    )
    held = claim_address(
        storage, claim, lambda settings: differing_settings(settings, config), say=say
    )
    folder.write_id(held.owner.run)
    storage.remove_leftovers(is_written_by(held.owner.run))
    return held


def open_resumed(
    manager: CheckpointManager, config: RunConfig, beat: Callable[[], None] = lambda: None
) -> CheckpointReader | None:
    """The checkpoint that the run resumes from; None: it is new. Collective.

    Once the run has saved a newer checkpoint, the one named by `run.resume` is ignored, so
    that the same command can be given again.

    Args:
        beat: called while a checkpoint is read.

    Raises:
        ConfigError: the configuration defines another run, or `run.resume` forbids resuming it.
        DataError: the checkpoint that `run.resume` names is missing or damaged, all are that
            the run has, or all have gone.
    """
    named = config.run.resume
    newest = _open_newest(manager, config.run)
    if newest is not None and named == "none":
        raise ConfigError(
            f"run.resume=none, but {manager.address} already holds checkpoints; set another "
            "run.name, remove them, or use run.resume=auto to resume"
        )
    if newest is None and named in ("auto", "none"):
        collectives.on_rank_0(lambda: _check_none_lost(manager, config.run))
    if named in ("auto", "none") or (newest and newest.state["origin"] == named):
        reader = newest
    else:
        if newest is not None:
            newest.close()
        reader = _open_named(named, config.data.endpoint, beat)
    if reader is not None:
        check_same_run(reader, config)
    return reader


def _open_newest(manager: CheckpointManager, run: RunSection) -> CheckpointReader | None:
    try:
        newest = manager.open_newest()
    except UnusableCheckpointsError:
        if run.resume == "auto":
            raise
        manager.mark_damaged()
        return None
    folder = RunFolder(run.folder)
    lost = collectives.from_rank_0(folder.read_newest_checkpoint) is not None
    if newest is None and run.resume == "none" and folder.has_records and not lost:
        raise ConfigError(
            f"run.resume=none, but {run.folder} already holds a run; set another run.name "
            "or remove the folder"
        )
    return newest


def _check_none_lost(manager: CheckpointManager, run: RunSection) -> None:
    """Refuse to start over a run that has published checkpoints, none of which is there now.

    Raises:
        DataError: unless run.resume=none, which forgets them.
    """
    folder = RunFolder(run.folder)
    published = folder.read_newest_checkpoint()
    if published is None:
        return
    if run.resume == "none":
        folder.forget_newest_checkpoint()
        return
    address, step = published
    raise DataError(
        f"{folder.path} has a checkpoint of step {step} at {address}, and {manager.address} holds "
        "none: set checkpoint.address and data.endpoint back, restore the checkpoint, or start "
        "another run.name; run.resume=none with another checkpoint.address starts this one over"
    )


def _open_named(address: str, endpoint: str, beat: Callable[[], None]) -> CheckpointReader:
    parent, folder = split_address(address, "run.resume")
    storage = open_storage(parent, endpoint)
    reader, problem = open_verified(storage, folder, beat)
    if reader is None:
        raise DataError(f"run.resume={address}: {problem}")
    return reader


def check_same_run(reader: CheckpointReader, config: RunConfig) -> None:
    """Refuse a configuration that defines another run than a checkpoint's.

    Raises:
        ConfigError: names each setting that differs, both values, and the fix.
    """
    differing = differing_settings(reader.state["config"], config)
    if differing:
        raise ConfigError(
            f"{reader.folder} belongs to a run with a different configuration: "
            f"{', '.join(differing)}; "
            "restore these settings, or set another run.name and stages.init_from, which loads "
            "weights only"
        )


def fit_workers(
    run: RunSection, engine: EngineConfig, state: dict[str, Any] | None
) -> EngineConfig:
    """The engines' settings with the accumulation that this number of workers needs.

    The global batch stays: see `engine.max_micro_batch`.

    Args:
        state: of the checkpoint that the run resumes from; None for a new run.

    Raises:
        ConfigError: the global batch does not divide evenly.
    """
    workers = collectives.world_size()
    if state is None:
        wanted = run.workers or workers
        first_workers, largest = wanted, engine.micro_batch(wanted)
    else:
        first_workers, largest = state["first_workers"], state["first_micro_batch"]
    if workers != first_workers:
        largest = engine.max_micro_batch or largest
    accumulation = engine.accumulation_for(workers, largest)
    return replace(engine, accumulation=accumulation)
