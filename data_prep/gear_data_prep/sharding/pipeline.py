"""A corpus: plan, shard tasks, manifest. Published last: dataset.json.

Killed at any moment, the same command continues: finished shards are recognised by their records
and checksums, and the final objects are byte-identical to an undisturbed run's.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from gear_data_prep.samples import NOT_FETCHED, common_reasons
from gear_data_prep.sharding.destination import check_claim, find_finished_corpus
from gear_data_prep.sharding.executors import run_tasks
from gear_data_prep.sharding.manifest_writer import (
    PLAN_KEY,
    QUARANTINE_KEY,
    Origin,
    SplitTally,
    is_corpus_object,
    load_quarantine,
    publish,
    remove_parts,
    write_quarantine,
)
from gear_data_prep.sharding.plan import PlannedShard, PlanSettings, ShardPlan, plan_shards
from gear_data_prep.sharding.shard_writer import ShardJob
from gear_data_prep.sources import SourceSpec
from gear_data_prep.sources.base import Source
from gear_dist.data.manifest import DatasetInfo, load_manifest
from gear_dist.errors import DataError
from gear_dist.progress import ImageProgress
from gear_dist.storage.base import Storage

Dropped = dict[int, tuple[int, ...]]
"""Samples that a plan leaves out, by unit."""


class CorpusSettings(NamedTuple):
    """How a corpus is made; only `plan` decides its bytes."""

    plan: PlanSettings
    max_bad_share: float = 0.01
    """Above this share of bad samples the run stops."""
    workers: int = 1
    """Processes, or Ray tasks at a time."""
    on_ray: bool = False
    """Whether the tasks are Ray's."""


class CorpusResult(NamedTuple):
    """What a run has done."""

    info: DatasetInfo
    num_bad: int
    num_skipped: int
    odd: dict[str, int]
    """Samples that went in though they are odd, by kind."""
    num_bytes: int
    """Of all shards."""
    reused: bool
    """Nothing had to be done."""
    seconds: float


def make_corpus(
    storage: Storage,
    source: Source,
    split: str,
    settings: CorpusSettings,
    *,
    spec: SourceSpec,
    dropped: Dropped | None = None,
) -> CorpusResult:
    """Shard one split of a source, or recognise it as done.

    Args:
        storage: where the corpus goes; see `prepare_destination`.
        source: what is sharded.
        split: which part of it.
        settings: how.
        spec: how the source is opened again, which `repair` does.
        dropped: samples that are left out.

    Raises:
        DataError: another corpus is there, too many bad samples, an unreadable source.
        StorageError: the destination refuses a write, or worker processes keep dying.
    """
    check_missing(source, settings.max_bad_share)
    plan = plan_shards(source.splits[split], source.classes, settings.plan, dropped)
    done = find_finished_corpus(storage, plan.plan_hash)
    if done is not None:
        remove_parts(storage)
        storage.remove_leftovers()
        report = load_quarantine(storage)
        skipped = sum(report.get("skipped", {}).values())
        size = sum(info.bytes for info in load_manifest(storage).shards)
        odd = report.get("odd", {})
        return CorpusResult(done, report["num_bad"], skipped, odd, size, True, 0.0)
    described = _describe(settings.plan, spec, split, dropped)
    origin = Origin(source.address, source.classes, described, plan.plan_hash)
    _claim(storage, origin)
    progress = ImageProgress(f"shard {split}", plan.num_samples)
    damaged = source.damaged if split == "train" else ()
    tally = _run(storage, source, plan, settings, SplitTally(damaged), progress)
    _remove_strays(storage, plan)
    info = publish(storage, origin, tally)
    remove_parts(storage)
    storage.remove_leftovers()
    seconds = progress.finish()
    return CorpusResult(
        info,
        len(tally.bad),
        tally.skipped.total(),
        dict(sorted(tally.odd.items())),
        tally.num_bytes,
        False,
        seconds,
    )


def job_maker(
    storage: Storage, source: Source, plan: ShardPlan, settings: PlanSettings
) -> Callable[[PlannedShard], ShardJob]:
    """A function from a planned shard to its job."""

    def make(planned: PlannedShard) -> ShardJob:
        taken = plan.taken(planned)
        return ShardJob(storage, source.reader, planned, taken, settings, plan.plan_hash)

    return make


def _describe(
    plan: PlanSettings, spec: SourceSpec, split: str, dropped: Dropped | None
) -> dict[str, Any]:
    """All that makes the same plan again from the same source; JSON."""
    pairs = sorted((unit, list(samples)) for unit, samples in (dropped or {}).items())
    return {"plan": plan.dump(), "source": spec.dump(), "split": split, "dropped": pairs}


def _claim(storage: Storage, origin: Origin) -> None:
    """Say whose plan the destination is for; refuses where another one was first."""
    node = {"plan_hash": origin.plan_hash, "settings": origin.settings}
    if not storage.create(PLAN_KEY, (json.dumps(node, indent=1, sort_keys=True) + "\n").encode()):
        check_claim(storage, origin.plan_hash)


def _remove_strays(storage: Storage, plan: ShardPlan) -> None:
    """Remove shards that an interrupted --overwrite of a longer corpus has left."""
    planned = {f"shards/{shard.name}" for shard in plan.shards}
    for item in list(storage.list("shards/")):
        if item.key not in planned and is_corpus_object(item.key):
            storage.delete(item.key)


def _run(
    storage: Storage,
    source: Source,
    plan: ShardPlan,
    settings: CorpusSettings,
    tally: SplitTally,
    progress: ImageProgress,
) -> SplitTally:
    limit = _bad_limit(source, plan, settings.max_bad_share)
    num_bad = len(tally.bad)
    make_job = job_maker(storage, source, plan, settings.plan)
    for summary, found in run_tasks(
        plan.shards, make_job, settings.workers, on_ray=settings.on_ray
    ):
        tally.add(summary)
        progress.advance(summary.num_planned, summary.info.bytes, timed=not found)
        num_bad += sum(item.kind != NOT_FETCHED for item in summary.bad)
        if num_bad > limit:
            progress.finish()
            _stop_for_bad_samples(storage, source, tally, plan, settings.max_bad_share)
    return tally


def check_missing(source: Source, max_bad_share: float) -> None:
    """Refuse a source too much of which the web did not give."""
    missing, total = sum(source.missing.values()), source.num_samples
    if missing > max_bad_share * total:
        raise DataError(
            f"{source.address}: {missing:,} of {total:,} rows were not fetched "
            f"({common_reasons(source.missing)}), more than --max-bad-share {max_bad_share:g} "
            "allows: raise it, or try them again by --refetch; what was fetched is kept"
        )


def _bad_limit(source: Source, plan: ShardPlan, max_bad_share: float) -> int:
    """Bad samples that a split may have: what is missing has had its part of the share.

    It is missing from the source as a whole; small splits may have more of it by chance.
    """
    missing_share = sum(source.missing.values()) / source.num_samples
    return int(max_bad_share * plan.num_samples - missing_share * plan.num_samples)


def _stop_for_bad_samples(
    storage: Storage, source: Source, tally: SplitTally, plan: ShardPlan, max_bad_share: float
) -> NoReturn:
    write_quarantine(storage, tally)
    first = min(tally.bad)
    beside = f", beside {sum(source.missing.values()):,} not fetched," if source.missing else ""
    raise DataError(
        f"{first.name}: {first.reason}; {len(tally.bad)} bad samples of {plan.num_samples}{beside} "
        f"are more than --max-bad-share {max_bad_share:g} allows: mend or remove them (list: "
        f"{storage.address}/{QUARANTINE_KEY}), or raise it"
    )
