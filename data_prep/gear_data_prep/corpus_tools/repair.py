"""Makes again just the shards that are broken or missing, to the same checksums."""

import json
from typing import NamedTuple

from gear_data_prep.corpus_tools.verify import Fault, VerifyResult
from gear_data_prep.sharding.executors import run_tasks
from gear_data_prep.sharding.manifest_writer import PLAN_KEY, remove_parts
from gear_data_prep.sharding.pipeline import CorpusSettings, Dropped, job_maker, make_corpus
from gear_data_prep.sharding.plan import PlanSettings, plan_shards
from gear_data_prep.sources import SourceSpec, open_source
from gear_dist.data.manifest import DATASET_KEY, CorpusManifest, DatasetInfo, load_manifest
from gear_dist.errors import DataError, StorageError
from gear_dist.storage.base import Storage


class RepairResult(NamedTuple):
    """What a repair has done."""

    num_shards: int
    """Made again."""
    num_removed: int
    """Objects that the manifest does not list."""
    remade: bool
    """The manifest was damaged, so that all was rewritten."""


class _Recipe(NamedTuple):
    plan: PlanSettings
    spec: SourceSpec
    split: str
    dropped: Dropped
    plan_hash: str


def repair_corpus(
    storage: Storage, found: VerifyResult, *, source: str, endpoint: str, workers: int
) -> RepairResult:
    """Mend what `verify_corpus` has found.

    Args:
        storage: the corpus.
        found: its faults.
        source: where the source is now; empty: where it was.
        endpoint: S3 endpoint of the source.
        workers: processes.

    Raises:
        DataError: the source is not what the corpus was made from, or no plan is left.
        StorageError: what was made differs from the manifest.
    """
    if not found.faults:
        return RepairResult(0, 0, False)
    recipe = _load_recipe(storage, found.info, source, endpoint)
    if found.info is None or any(fault.key in found.info.checksums for fault in found.faults):
        _remake(storage, recipe, workers)
        return RepairResult(len(load_manifest(storage).shards), 0, True)
    strays = [fault.key for fault in found.faults if _is_stray(fault)]
    for key in strays:
        storage.delete(key)
    broken = {fault.shard for fault in found.faults if fault.shard >= 0}
    if broken:
        _remake_shards(storage, recipe, load_manifest(storage), broken, workers)
    return RepairResult(len(broken), len(strays), False)


def _is_stray(fault: Fault) -> bool:
    return fault.shard < 0 and fault.key != DATASET_KEY


def _load_recipe(storage: Storage, info: DatasetInfo | None, source: str, endpoint: str) -> _Recipe:
    """How the corpus was made, from its dataset.json, else from the plan's note."""
    try:
        if info is not None:
            node, plan_hash = info.settings, info.plan_hash
        else:
            note = json.loads(storage.read(PLAN_KEY))
            node, plan_hash = note["settings"], note["plan_hash"]
        spec = SourceSpec.load(node["source"], endpoint)
        return _Recipe(
            PlanSettings.load(node["plan"]),
            spec._replace(address=source) if source else spec,
            node["split"],
            {int(unit): tuple(samples) for unit, samples in node["dropped"]},
            plan_hash,
        )
    except (DataError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{storage.address}: no plan is left to repair it by: make it again with "
            "`gear-dist shard SOURCE DESTINATION --overwrite`"
        ) from None


def _remake(storage: Storage, recipe: _Recipe, workers: int) -> None:
    """Where the manifest itself is damaged: the whole run again, which gives the same bytes."""
    source = open_source(recipe.spec)
    storage.delete(DATASET_KEY)
    storage.delete(PLAN_KEY)
    settings = CorpusSettings(recipe.plan, max_bad_share=1.0, workers=workers)
    make_corpus(
        storage,
        source,
        recipe.split,
        settings,
        spec=recipe.spec,
        dropped=recipe.dropped,
    )


def _remake_shards(
    storage: Storage, recipe: _Recipe, manifest: CorpusManifest, broken: set[int], workers: int
) -> None:
    source = open_source(recipe.spec)
    if recipe.split not in source.splits:
        raise DataError(f"{source.address}: has no {recipe.split} split any more")
    plan = plan_shards(source.splits[recipe.split], source.classes, recipe.plan, recipe.dropped)
    if plan.plan_hash != recipe.plan_hash:
        raise DataError(
            f"{source.address}: is not what {storage.address} was made from: name the unchanged "
            "source by --source, or make the corpus again with --overwrite"
        )
    shards = tuple(planned for planned in plan.shards if planned.shard in broken)
    make_job = job_maker(storage, source, plan, recipe.plan)
    remove_parts(storage)
    for summary, _ in run_tasks(shards, make_job, workers):
        info = manifest.shards[summary.info.shard]
        if summary.info != info:
            raise StorageError(
                f"{storage.address}/{info.key}: the rewritten shard differs from the manifest "
                f"(the source or the image libraries changed): recreate the corpus with --overwrite"
            )
    remove_parts(storage)
    storage.remove_leftovers()
