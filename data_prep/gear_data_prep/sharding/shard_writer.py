"""One shard: read its samples, check them, write a tar and a record of what is in it.

A shard task is idempotent: the same planned shard gives the same bytes whoever runs it and
however often, so a killed one is simply run again.
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import xxhash

from gear_data_prep.images.captions import check_captions
from gear_data_prep.images.checks import CheckedImage, check_image
from gear_data_prep.images.resize import resize_image
from gear_data_prep.policies import KEEP, SKIP
from gear_data_prep.samples import BadSample, BadSampleError, RawSample
from gear_data_prep.sharding.plan import PlannedShard, PlanSettings, Taken, shuffled
from gear_data_prep.sharding.records import (
    SampleRow,
    ShardRecord,
    ShardSummary,
    SummaryBuilder,
    record_key,
)
from gear_data_prep.sources.base import Reader
from gear_dist.config.colour import parse_colour
from gear_dist.data.manifest import ShardInfo
from gear_dist.data.origins import UNKNOWN, OriginRow, SampleOrigin, origin_row
from gear_dist.data.sample_filters import CAPTION_TYPE, LICENSE, MIN_SIDE, SampleFilters
from gear_dist.data.shard_reader import TypedCaption
from gear_dist.data.tar_writer import TarWriter
from gear_dist.errors import DataError
from gear_dist.storage.base import Storage
from gear_dist.storage.checksums import checksum_of

_READS_AHEAD = 8


class ShardJob(NamedTuple):
    """Everything a shard task needs; pickled."""

    storage: Storage
    reader: Reader
    planned: PlannedShard
    taken: tuple[Taken, ...]
    settings: PlanSettings
    plan_hash: str


class ShardOutcome(NamedTuple):
    """What a task has done."""

    summary: ShardSummary
    found: bool
    """A former run had finished the shard."""


class _Texts(NamedTuple):
    captions: tuple[TypedCaption, ...]
    attributes: dict[str, int]
    origin: SampleOrigin

    @property
    def types(self) -> tuple[str, ...]:
        """Of each caption; empty: none has one."""
        types = tuple(caption.kind for caption in self.captions)
        return types if any(types) else ()


class FilteredSampleError(BadSampleError):
    """A sample that is fine, and that the filters do not take."""


MAX_CLASSES = 1 << 20
"""A larger number is an id of something else: each index below it would be a class."""


class _Prepared(NamedTuple):
    """What of a sample goes into the shard."""

    image: CheckedImage
    original: CheckedImage | None
    """Where the image is a smaller one and both go in."""
    texts: _Texts
    odd: tuple[str, ...]
    """Kinds of what is odd about it."""


def run_job(job: ShardJob) -> ShardOutcome:
    """Make a shard, unless a former run has."""
    record = find_finished(job)
    if record is not None:
        return ShardOutcome(record.summary, True)
    return ShardOutcome(make_shard(job).summary, False)


def make_shard(job: ShardJob) -> ShardRecord:
    """Write one shard, then its record, each atomically.

    Raises:
        DataError: the source changed or cannot be read.
        StorageError: the destination refuses the write.
    """
    planned = job.planned
    rows: list[SampleRow] = []
    origins: list[OriginRow] = []
    builder = SummaryBuilder()
    with job.storage.writer(f"shards/{planned.name}") as stream:
        tar = TarWriter(stream)
        for number, raw in enumerate(_samples(job), planned.first):
            try:
                image, original, texts, odd = _prepare(raw, job.settings)
            except BadSampleError as error:
                _leave_out(builder, raw, error, job.settings)
                continue
            key = f"{number:08d}"
            offset = tar.add(f"{key}.{image.suffix}", image.data)
            if original is not None:
                tar.add(f"{key}.original.{original.suffix}", original.data)
            _add_texts(tar, key, raw.class_index, texts)
            rows.append(_row(key, raw, image, texts, planned.shard, offset))
            builder.add(raw.class_index, len(texts.captions), texts.attributes, odd)
            origins.append(origin_row(key, texts.types, texts.origin))
            builder.add_origin(origins[-1])
        checksum = tar.finish()
    info = ShardInfo(planned.shard, planned.name, len(rows), tar.position, checksum)
    told = tuple(origins) if builder.num_origins else ()
    record = ShardRecord(job.plan_hash, builder.finish(info), tuple(rows), told)
    job.storage.write(record_key(planned.shard), record.dump())
    return record


def find_finished(job: ShardJob) -> ShardRecord | None:
    """The shard's record where a former run has finished it under this plan, else None.

    The shard itself is read back, in bounded memory: a record counts only together with the
    bytes it describes.
    """
    key = record_key(job.planned.shard)
    if not job.storage.exists(key):
        return None
    try:
        record = ShardRecord.load(job.storage.read(key))
        info = record.summary.info
        same_plan = record.plan_hash == job.plan_hash
        whole = record.summary.num_planned == job.planned.num_samples
        if same_plan and whole and checksum_of(job.storage, info.key) == info.crc64nvme:
            return record
    except (DataError, ValueError, TypeError, KeyError):
        pass
    return None


def _samples(job: ShardJob) -> Iterator[RawSample]:
    """The shard's samples in their order, as many as planned."""
    units = _read_units(job)
    if all(taken.unit.num_samples == 1 for taken in job.taken):
        # Units of one sample are in a random order already: nothing has to be held.
        yield from (sample for part in units for sample in part)
        return
    samples = [sample for part in units for sample in part]
    yield from (samples[i] for i in shuffled(len(samples), job.settings.seed, job.planned.shard))


def _read_units(job: ShardJob) -> Iterator[list[RawSample]]:
    read = job.reader.read
    units = [taken.unit for taken in job.taken]
    parts = _ahead(read, units) if job.reader.remote else map(read, units)
    for taken, samples in zip(job.taken, parts, strict=True):
        if len(samples) != taken.unit.num_samples:
            raise DataError(f"{taken.unit.identity}: changed since it was listed")
        yield [sample for i, sample in enumerate(samples) if i not in taken.dropped]


def _ahead(read: Any, units: Iterable[Any]) -> Iterator[list[RawSample]]:
    """`map`, several reads at a time."""
    with ThreadPoolExecutor(_READS_AHEAD) as pool:
        waiting: deque[Future[list[RawSample]]] = deque()
        for unit in units:
            waiting.append(pool.submit(read, unit))
            if len(waiting) > _READS_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _prepare(raw: RawSample, settings: PlanSettings) -> _Prepared:
    """What of a sample goes into the shard; BadSampleError where a policy leaves it out."""
    if raw.problem is not None:
        raise raw.problem
    if raw.class_index >= MAX_CLASSES:
        raise BadSampleError("sidecar", f"its class {raw.class_index} is not a class index")
    policies = settings.image.policies
    if raw.class_index < 0 and policies["no-class"] != KEEP:
        raise BadSampleError("no-class", "it has no class")
    for kind, reason in raw.odd.items():
        if policies[kind] != KEEP:
            raise BadSampleError(kind, reason)
    _check_origin(raw, settings.filters)
    short_side = settings.resize.short_side
    image = check_image(raw.image, raw.suffix, settings.image, short_side=short_side)
    if not settings.filters.takes_size(image.width, image.height):
        raise FilteredSampleError(MIN_SIDE, f"{image.width} x {image.height} pixels")
    captions = check_captions(raw.captions, policies, raw.caption_types)
    texts = _Texts(_captions_of_types(captions, settings.filters), raw.attributes, raw.origin)
    odd = (*raw.odd, *image.odd)
    if not short_side:
        return _Prepared(image, None, texts, odd)
    small = resize_image(
        image, settings.resize, settings.image.max_pixels, parse_colour(settings.image.background)
    )
    keep = settings.resize.keep_original and small is not image
    return _Prepared(small, image if keep else None, texts, odd)


def _check_origin(raw: RawSample, filters: SampleFilters) -> None:
    """What needs no pixels; raises FilteredSampleError."""
    if kind := filters.refusal_of_origin(raw.origin):
        value = raw.origin.license if kind == LICENSE else raw.origin.split
        raise FilteredSampleError(kind, f"{kind} {value or UNKNOWN}")
    if not filters.takes_types(raw.caption_types):
        raise FilteredSampleError(CAPTION_TYPE, _name_types(raw.caption_types))


def _captions_of_types(
    captions: tuple[TypedCaption, ...], filters: SampleFilters
) -> tuple[TypedCaption, ...]:
    """Those of the types that are wanted; FilteredSampleError where the others are blank."""
    if not filters.caption_types:
        return captions
    wanted = tuple(caption for caption in captions if caption.kind in filters.caption_types)
    if not wanted:
        raise FilteredSampleError(CAPTION_TYPE, _name_types([c.kind for c in captions]))
    return wanted


def _name_types(types: Sequence[str]) -> str:
    return f"{CAPTION_TYPE} {', '.join(filter(None, dict.fromkeys(types))) or UNKNOWN}"


def _leave_out(
    builder: SummaryBuilder, raw: RawSample, error: BadSampleError, settings: PlanSettings
) -> None:
    if isinstance(error, FilteredSampleError):
        builder.skipped[error.kind] += 1
        builder.examples.setdefault(error.kind, f"{raw.name} ({error})")
    elif settings.image.policies[error.kind] == SKIP:
        builder.skipped[error.kind] += 1
    else:
        builder.bad.append(BadSample(raw.name, error.kind, str(error)))


def _add_texts(tar: TarWriter, key: str, class_index: int, texts: _Texts) -> None:
    if class_index >= 0:
        tar.add(f"{key}.cls", str(class_index).encode())
    if texts.captions:
        tar.add(f"{key}.txt", texts.captions[0].text.encode())
    sidecar: dict[str, Any] = dict(texts.attributes)
    if len(texts.captions) > 1:
        sidecar["captions"] = [caption.text for caption in texts.captions]
    if texts.types and len(texts.types) > 1:
        sidecar["caption_types"] = list(texts.types)
    elif texts.types:
        sidecar["caption_type"] = texts.types[0]
    sidecar |= {name: text for name, text in texts.origin._asdict().items() if text}
    if sidecar:
        tar.add(f"{key}.json", json.dumps(sidecar, sort_keys=True).encode())


def _row(
    key: str, raw: RawSample, image: CheckedImage, texts: _Texts, shard: int, offset: int
) -> SampleRow:
    return SampleRow(
        key,
        raw.class_index,
        image.width,
        image.height,
        len(image.data),
        xxhash.xxh3_128_hexdigest(image.data),
        shard,
        offset,
        len(texts.captions),
        sum(len(caption.text) for caption in texts.captions),
    )
