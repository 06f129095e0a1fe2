"""Which checkpoint a run goes on from, and what it may go on with."""

from dataclasses import replace
from typing import Any

from gear_dist import dist
from gear_dist.addresses import join_address, split_address
from gear_dist.checkpoints.reading import CheckpointReader
from gear_dist.checkpoints.retention import Retention
from gear_dist.checkpoints.store import CheckpointStore, open_verified
from gear_dist.config import RunConfig
from gear_dist.errors import ConfigError, DataError
from gear_dist.run_folder import RunFolder, differing_settings
from gear_dist.storage import Storage, open_storage


def checkpoint_storage(config: RunConfig) -> Storage:
    """Where a run's checkpoints are."""
    if not config.checkpoint.address:
        return open_storage(str(RunFolder(config.run.folder).checkpoints))
    address = join_address(config.checkpoint.address, config.run.name, "checkpoint.address")
    return open_storage(address, config.data.endpoint)


def open_store(config: RunConfig) -> CheckpointStore:
    """The run's checkpoints; what killed writers left there is removed. Collective."""
    storage = checkpoint_storage(config)
    dist.on_rank_0(lambda: storage.remove_leftovers())
    return CheckpointStore(
        storage, Retention(config.checkpoint), asynchronous=config.checkpoint.asynchronous
    )


def open_resumed(store: CheckpointStore, config: RunConfig) -> CheckpointReader | None:
    """The checkpoint that the run goes on from; None: it is new. Collective.

    A checkpoint that `run.resume` names is left behind once the run has one of its own since, so
    that the same command can be given again.

    Raises:
        ConfigError: the configuration defines another run, or `run.resume` forbids going on.
        DataError: the checkpoint that `run.resume` names is missing or damaged.
    """
    named = config.run.resume
    newest = store.open_newest()
    if newest is not None and named == "none":
        raise ConfigError(
            f"run.resume=none, but {store.address} already holds checkpoints; set another "
            "run.name, remove them, or use run.resume=auto to go on"
        )
    if named in ("auto", "none") or (newest and newest.facts["origin"] == named):
        reader = newest
    else:
        if newest is not None:
            newest.close()
        reader = _open_named(named, config)
    if reader is not None:
        check_same_run(reader, config)
    return reader


def _open_named(address: str, config: RunConfig) -> CheckpointReader:
    parent, folder = split_address(address, "run.resume")
    reader, problem = open_verified(open_storage(parent, config.data.endpoint), folder)
    if reader is None:
        raise DataError(f"run.resume={address}: {problem}")
    return reader


def check_same_run(reader: CheckpointReader, config: RunConfig) -> None:
    """Refuse a configuration that defines another run than a checkpoint's.

    Raises:
        ConfigError: names each setting that differs, both values, and the fix.
    """
    differing = differing_settings(reader.facts["config"], config)
    if differing:
        raise ConfigError(
            f"{reader.folder} is of a run of another configuration: {', '.join(differing)}; "
            "restore these settings, or set another run.name and stages.start_from, which takes "
            "weights alone"
        )


def fit_workers(config: RunConfig, facts: dict[str, Any] | None) -> RunConfig:
    """The configuration with the accumulation that this number of workers needs.

    The global batch stays: see `engine.max_micro_batch`.

    Args:
        facts: of the checkpoint that the run goes on from; None: it is new.

    Raises:
        ConfigError: the global batch does not divide evenly.
    """
    workers, engine = dist.world_size(), config.engine
    if facts is None:
        wanted = config.run.workers or workers
        first_workers, largest = wanted, engine.micro_batch(wanted)
    else:
        first_workers, largest = facts["first_workers"], facts["first_micro_batch"]
    if workers != first_workers:
        largest = engine.max_micro_batch or largest
    accumulation = engine.accumulation_for(workers, largest)
    return replace(config, engine=replace(engine, accumulation=accumulation))
