"""A corpus: plan, shard tasks on one or several processes, manifest. Published last: the facts.

Killed at any moment, the same command continues: finished shards are recognised by their records
and checksums, and the final objects are byte-identical to an undisturbed run's.
"""

import importlib.metadata
import json
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple, NoReturn

import pyarrow as pa
import xxhash

from gear_data_prep.plan import Plan, PlannedShard, PlanSettings, make_plan
from gear_data_prep.progress import Progress
from gear_data_prep.shards import BadImage, ShardRecord, find_finished, make_shard
from gear_data_prep.sources import Source
from gear_dist.data.manifest import (
    DATASET_KEY,
    SAMPLES_KEY,
    SAMPLES_SCHEMA,
    SCHEMA_VERSION,
    SHARDS_KEY,
    SHARDS_SCHEMA,
    DatasetFacts,
    ShardInfo,
    dump_facts,
    dump_table,
    load_manifest,
)
from gear_dist.errors import DataError, StorageError
from gear_dist.storage import Storage

PLAN_KEY = "manifest/plan.json"
QUARANTINE_KEY = "manifest/quarantine.json"
_PARTS = "manifest/parts/"
_POOL_ATTEMPTS = 3


class CorpusSettings(NamedTuple):
    """How a corpus is made; only `plan` decides its bytes."""

    plan: PlanSettings
    max_bad_share: float = 0.01
    """Above this share of bad images the run stops."""
    workers: int = 1
    """Processes."""
    overwrite: bool = False
    """Replace a corpus with another plan."""


class CorpusResult(NamedTuple):
    """What a run has done."""

    facts: DatasetFacts
    num_bad: int
    reused: bool
    """Nothing had to be done."""
    seconds: float


class _Outcome(NamedTuple):
    record: ShardRecord
    found: bool


class _Tally:
    """What the records add up to; rows are kept as compact columns."""

    def __init__(self) -> None:
        self.infos: dict[int, ShardInfo] = {}
        self.bad: list[BadImage] = []
        self._tables: dict[int, pa.Table] = {}
        self._counts: Counter[str] = Counter()
        self._maxima: dict[str, int] = {}

    def add(self, record: ShardRecord) -> None:
        """Count one shard's record."""
        shard = record.info.shard
        self.infos[shard] = record.info
        self.bad += record.bad
        columns = zip(*record.rows, strict=True) if record.rows else [[]] * len(SAMPLES_SCHEMA)
        self._tables[shard] = pa.table([list(column) for column in columns], SAMPLES_SCHEMA)
        self._counts.update(record.attribute_counts)
        for name, value in record.attribute_maxima.items():
            self._maxima[name] = max(value, self._maxima.get(name, 0))

    @property
    def num_samples(self) -> int:
        """Good images."""
        return sum(info.samples for info in self.infos.values())

    def tables(self) -> dict[str, pa.Table]:
        """The manifest's tables by key, in the order of the shards."""
        infos = [self.infos[shard]._asdict() for shard in sorted(self.infos)]
        samples = pa.concat_tables(self._tables[shard] for shard in sorted(self._tables))
        return {
            SAMPLES_KEY: samples.combine_chunks(),
            SHARDS_KEY: pa.Table.from_pylist(infos, SHARDS_SCHEMA),
        }

    def attributes(self) -> dict[str, int]:
        """Number of values of each attribute that every sample has."""
        everywhere = [name for name, count in self._counts.items() if count == self.num_samples]
        return {name: self._maxima[name] + 1 for name in sorted(everywhere)}


class _Job(NamedTuple):
    storage: Storage
    root: Path
    planned: PlannedShard
    settings: PlanSettings
    plan_hash: str


def make_corpus(
    storage: Storage, source: Source, split: str, settings: CorpusSettings
) -> CorpusResult:
    """Shard one split of a source, or recognise it as done.

    Raises:
        DataError: another corpus is there, too many bad images, an unreadable source.
        StorageError: the destination refuses a write, or worker processes keep dying.
    """
    plan = make_plan(source.splits[split], source.classes, settings.plan)
    done = _recognise(storage, plan, settings.overwrite)
    if done is not None:
        _remove_parts(storage)
        return CorpusResult(done, len(_load_quarantine(storage)), True, 0.0)
    note = {"plan_hash": plan.plan_hash, "settings": settings.plan._asdict()}
    storage.write(PLAN_KEY, json.dumps(note, sort_keys=True).encode())
    progress = Progress(f"shard {split}", plan.num_images)
    tally = _run_tasks(storage, source, plan, settings, progress)
    facts = _publish(storage, source, plan, settings.plan, tally)
    _remove_parts(storage)
    storage.remove_leftovers()
    return CorpusResult(facts, len(tally.bad), False, progress.finish())


def _recognise(storage: Storage, plan: Plan, overwrite: bool) -> DatasetFacts | None:
    """The facts of the finished corpus of this plan; refuses or clears another one."""
    finished = storage.exists(DATASET_KEY)
    if overwrite:
        _clear(storage)
        return None
    if finished:
        facts = load_manifest(storage).facts
        if facts.plan_hash == plan.plan_hash:
            return facts
        _refuse(storage, "a corpus of another plan (source or settings differ)")
    if storage.exists(PLAN_KEY):
        try:
            other = json.loads(storage.read(PLAN_KEY))["plan_hash"]
        except (ValueError, KeyError, TypeError):
            _refuse(storage, f"a damaged {PLAN_KEY}")
        if other != plan.plan_hash:
            _refuse(storage, "an unfinished corpus of another plan (source or settings differ)")
    return None


def _refuse(storage: Storage, what: str) -> NoReturn:
    raise DataError(
        f"{storage.address}: holds {what}: choose another destination, or --overwrite"
    ) from None


def _clear(storage: Storage) -> None:
    """Remove a corpus; the facts first, so that no half of it passes for a whole one."""
    storage.delete(DATASET_KEY)
    for prefix in ("manifest/", "shards/"):
        _remove_all(storage, prefix)


def _remove_parts(storage: Storage) -> None:
    _remove_all(storage, _PARTS)


def _remove_all(storage: Storage, prefix: str) -> None:
    # The listing is taken whole first: a store may page through what is left.
    for item in list(storage.list(prefix)):
        storage.delete(item.key)


def _run_tasks(
    storage: Storage, source: Source, plan: Plan, settings: CorpusSettings, progress: Progress
) -> _Tally:
    jobs = [
        _Job(storage, source.root, planned, settings.plan, plan.plan_hash)
        for planned in plan.shards
    ]
    limit = int(settings.max_bad_share * plan.num_images)
    tally = _Tally()
    for record, found in _outcomes(jobs, min(settings.workers, len(jobs))):
        tally.add(record)
        progress.advance(record.num_planned, timed=not found)
        if len(tally.bad) > limit:
            progress.finish()
            _stop_for_bad_images(storage, tally.bad, plan, settings.max_bad_share)
    return tally


def _outcomes(jobs: list[_Job], workers: int) -> Iterator[_Outcome]:
    """Run all jobs; those that die with their process are run again."""
    if workers == 1:
        yield from map(_run_job, jobs)
        return
    for _ in range(_POOL_ATTEMPTS):
        done: set[int] = set()
        try:
            for outcome in _pool_outcomes(jobs, workers):
                done.add(outcome.record.info.shard)
                yield outcome
            return
        except BrokenProcessPool:
            jobs = [job for job in jobs if job.planned.shard not in done]
    raise StorageError(
        f"worker processes died {_POOL_ATTEMPTS} times: is memory short? use fewer --workers; "
        "the same command continues"
    )


def _pool_outcomes(jobs: list[_Job], workers: int) -> Iterator[_Outcome]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare_worker) as pool:
        futures = [pool.submit(_run_job, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _prepare_worker() -> None:
    """Ctrl-C is the parent's to handle; a killed parent takes its workers with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _run_job(job: _Job) -> _Outcome:
    record = find_finished(job.storage, job.planned, job.plan_hash)
    if record is not None:
        return _Outcome(record, True)
    return _Outcome(make_shard(*job), False)


def _stop_for_bad_images(
    storage: Storage, bad: list[BadImage], plan: Plan, max_bad_share: float
) -> NoReturn:
    _write_quarantine(storage, bad)
    first = min(bad)
    raise DataError(
        f"{first.path}: {first.reason}; {len(bad)} bad images of {plan.num_images} are more than "
        f"--max-bad-share {max_bad_share:g} allows: mend or remove them (list: "
        f"{storage.address}/{QUARANTINE_KEY}), or raise it"
    )


def _write_quarantine(storage: Storage, bad: list[BadImage]) -> None:
    rows = [item._asdict() for item in sorted(bad)]
    reasons = Counter(item.reason.partition(":")[0] for item in bad)
    node = {"num_bad": len(rows), "reasons": dict(sorted(reasons.items())), "images": rows}
    storage.write(QUARANTINE_KEY, (json.dumps(node, indent=1) + "\n").encode())


def _load_quarantine(storage: Storage) -> list[dict[str, str]]:
    try:
        return json.loads(storage.read(QUARANTINE_KEY))["images"]
    except (DataError, ValueError, KeyError, TypeError):
        return []


def _publish(
    storage: Storage, source: Source, plan: Plan, settings: PlanSettings, tally: _Tally
) -> DatasetFacts:
    """Write the manifest, the facts last."""
    _write_quarantine(storage, tally.bad)
    if tally.num_samples == 0:
        raise DataError(f"{source.root}: no usable image; see {storage.address}/{QUARANTINE_KEY}")
    checksums = {}
    for key, table in tally.tables().items():
        data = dump_table(table)
        storage.write(key, data)
        checksums[key] = xxhash.xxh3_128_hexdigest(data)
    facts = DatasetFacts(
        schema_version=SCHEMA_VERSION,
        num_samples=tally.num_samples,
        num_shards=len(tally.infos),
        classes=source.classes,
        attributes=tally.attributes(),
        source=source.root.resolve().as_uri(),
        settings=settings._asdict(),
        plan_hash=plan.plan_hash,
        tool_version=importlib.metadata.version("gear-dist"),
        checksums=checksums,
    )
    storage.write(DATASET_KEY, dump_facts(facts))
    return facts
