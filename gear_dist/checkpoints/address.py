"""The address of a run's checkpoints, and what it must not overlap. No torch."""

from collections.abc import Iterator

from gear_dist.checkpoints.layout import OWNER
from gear_dist.config.data import DataConfig
from gear_dist.config.run import CheckpointConfig, RunSection
from gear_dist.errors import ConfigError
from gear_dist.runs.run_folder import RunFolder
from gear_dist.storage.addresses import join_address
from gear_dist.storage.base import Storage
from gear_dist.storage.local import FileStorage
from gear_dist.storage.open import open_storage, overlap


def checkpoint_storage(run: RunSection, checkpoint: CheckpointConfig, endpoint: str) -> Storage:
    """Where a run's checkpoints are; `endpoint` is data.endpoint, of S3."""
    if not checkpoint.address:
        return open_storage(str(RunFolder(run.folder).checkpoints))
    address = join_address(checkpoint.address, run.name, "checkpoint.address")
    return open_storage(address, endpoint)


def check_address(run: RunSection, checkpoint: CheckpointConfig, data: DataConfig) -> None:
    """Refuse a place for checkpoints that holds a corpus or run folders, or lies in one.

    Raises:
        ConfigError: names both settings.
    """
    storage = checkpoint_storage(run, checkpoint, data.endpoint)
    neighbours = list(_corpora(data))
    if checkpoint.address:  # else they belong into the run's folder
        neighbours.append(("run.root", run.root))
    for setting, value in neighbours:
        if overlap(storage, open_storage(value, data.endpoint)):
            named = "checkpoint.address" if checkpoint.address else "run.root"
            value_given = checkpoint.address or run.root
            raise ConfigError(
                f"{named}={value_given}: this run's checkpoints would be at {storage.address}, "
                f"which overlaps {setting}={value}: give checkpoints a place of their own by "
                f"another {named} or run.name"
            )


def _corpora(data: DataConfig) -> Iterator[tuple[str, str]]:
    """The addresses that are set, and by which setting."""
    if data.train:
        yield "data.train", data.train
    yield from (("data.mixture", address) for address in data.mixture)
    if data.validation:
        yield "data.validation", data.validation


def owners_above(storage: Storage) -> Iterator[tuple[Storage, str]]:
    """Where owners of the addresses above one would be, the nearest first: storage and key."""
    if isinstance(storage, FileStorage):
        yield from ((FileStorage(folder), OWNER) for folder in storage.root.parents)
        return
    scheme, _, path = storage.address.partition("://")
    bucket, *names = path.split("/")
    # One storage, because each has a client of its own, which takes time to make.
    root = open_storage(f"{scheme}://{bucket}", getattr(storage, "endpoint", ""))
    for count in range(len(names) - 1, -1, -1):
        yield root, "/".join([*names[:count], OWNER])
