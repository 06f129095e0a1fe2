"""What is at a destination before a corpus is made: ours is recognised, all else is left alone."""

from collections.abc import Collection
from typing import NoReturn

from gear_data_prep.sharding.manifest_writer import PLAN_KEY, is_corpus_object
from gear_dist.data.manifest import DATASET_KEY
from gear_dist.errors import DataError
from gear_dist.storage.base import Storage


def prepare_destination(
    places: dict[str, Storage], splits: Collection[str], *, overwrite: bool
) -> None:
    """Leave no split of a former corpus beside those of the new plan: their images overlap.

    With `overwrite` both go before the first new shard is written, so that a run that fails halfway
    leaves no old validation beside a new train.

    Args:
        places: where each split goes, those that the plan does not have among them.
        splits: those of the plan.
        overwrite: whether a former corpus is removed.

    Raises:
        DataError: files of others are where shards would go, or a split of a former corpus is there
            that the plan does not have and `overwrite` is not set.
    """
    for split in splits:
        _check_files(places[split])
    # Validation first: a run that is killed here leaves none beside a train that is yet to come.
    for split, storage in reversed(places.items()):
        if not (storage.exists(PLAN_KEY) or storage.exists(DATASET_KEY)):
            continue
        if overwrite:
            clear(storage)
        elif split not in splits:
            refuse(
                storage,
                f"the {split} split of a former corpus, which this plan does not have (its images "
                "may be in both)",
            )


def refuse(storage: Storage, what: str) -> NoReturn:
    """DataError for a corpus that is in the way."""
    raise DataError(
        f"{storage.address}: holds {what}: choose another destination, or --overwrite"
    ) from None


def clear(storage: Storage) -> None:
    """Remove a corpus: dataset.json first, so that half of it never passes for a whole one, last
    the plan, by which what is left is known as ours. Files of others stay."""
    storage.delete(DATASET_KEY)
    for prefix in ("shards/", "manifest/"):
        for item in list(storage.list(prefix)):
            if is_corpus_object(item.key) and item.key != PLAN_KEY:
                storage.delete(item.key)
    storage.delete(PLAN_KEY)


def _check_files(storage: Storage) -> None:
    """Refuse a destination that holds what no plan of ours has put there.

    Raises:
        DataError: there is something below shards/ or manifest/, and no plan.
    """
    if storage.exists(PLAN_KEY) or storage.exists(DATASET_KEY):
        return
    for prefix in ("shards/", "manifest/"):
        found = next(iter(storage.list(prefix)), None)
        if found is not None:
            raise DataError(
                f"{storage.address}: holds {found.key}, which `gear-dist shard` did not write, and "
                "shards would be written next to it: choose another destination, or move it away"
            )
