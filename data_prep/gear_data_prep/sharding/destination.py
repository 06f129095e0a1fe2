"""What is at a destination before a corpus is made: ours is recognised, all else is left alone."""

import json
from typing import NoReturn

from gear_data_prep.sharding.manifest_writer import PLAN_KEY, is_corpus_object
from gear_dist.data.manifest import DATASET_KEY, DatasetInfo, load_manifest
from gear_dist.errors import DataError
from gear_dist.storage.base import Storage


def prepare_destination(
    places: dict[str, Storage], plan_hashes: dict[str, str], *, overwrite: bool
) -> None:
    """Leave no split of a former corpus beside those of the new plan: their images overlap.

    Without `overwrite` nothing is written where either split holds another corpus. With it both go
    before the first new shard is written, so that a run that fails halfway leaves no old validation
    beside a new train.

    Args:
        places: where each split goes, those that the plan does not have among them.
        plan_hashes: of the splits that the plan has.
        overwrite: whether a former corpus is removed.

    Raises:
        DataError: files of others are where shards would go, or another corpus is there and
            `overwrite` is not set.
    """
    for split in plan_hashes:
        _check_files(places[split])
    # Validation first: a run that is killed here leaves none beside a train that is yet to come.
    for split, storage in reversed(places.items()):
        if not (storage.exists(PLAN_KEY) or storage.exists(DATASET_KEY)):
            continue
        if overwrite:
            clear(storage)
        elif split not in plan_hashes:
            _refuse(
                storage,
                f"the {split} split of a former corpus, which this plan does not have (its images "
                "may be in both)",
            )
        elif not find_finished_corpus(storage, plan_hashes[split]):
            check_claim(storage, plan_hashes[split])


def find_finished_corpus(storage: Storage, plan_hash: str) -> DatasetInfo | None:
    """dataset.json of the finished corpus of this plan; refuses another one."""
    if storage.exists(DATASET_KEY):
        info = load_manifest(storage).info
        if info.plan_hash == plan_hash:
            return info
        _refuse(storage, "a corpus sharded from another source or with other settings")
    return None


def check_claim(storage: Storage, plan_hash: str) -> None:
    """Refuse an unfinished corpus of another plan."""
    try:
        other = json.loads(storage.read(PLAN_KEY))["plan_hash"]
    except (ValueError, KeyError, TypeError):
        _refuse(storage, f"a damaged {PLAN_KEY}")
    if other != plan_hash:
        _refuse(storage, "an unfinished corpus of another plan (source or settings differ)")


def _refuse(storage: Storage, what: str) -> NoReturn:
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
