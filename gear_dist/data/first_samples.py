"""The samples of a first batch, read one by one, so that it does not wait for whole shards."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple, TypeVar

import xxhash

from gear_dist.data.corpus import Corpus
from gear_dist.data.manifest import ShardInfo
from gear_dist.data.sample_spans import SampleSpan, TablePart, parts_with, read_spans
from gear_dist.data.shard_reader import Shard, index_samples
from gear_dist.errors import DataError

Place = tuple[int, int]
"""Number of a shard over all corpora, and row in it."""
Result = TypeVar("Result")

_THREADS = 16
_LONGEST_S = 5.0
_BYTES_A_READ = 1 << 20
"""A ranged read takes about as long as so many bytes of a whole shard."""
_TAR_END = bytes(1024)


class _Need(NamedTuple):
    """What is wanted of one corpus."""

    corpus: Corpus
    first_shard: int
    """Number of its first shard over all corpora."""
    rows: dict[int, list[int]]
    """By its own shard numbers."""

    @property
    def worthwhile(self) -> bool:
        """Whether reading the samples costs less than reading their shards."""
        whole = sum(self.corpus.manifest.shards[shard].bytes for shard in self.rows)
        return sum(map(len, self.rows.values())) * _BYTES_A_READ < whole


def read_first_samples(
    corpora: Sequence[Corpus], places: Sequence[Place], is_near: Callable[[ShardInfo], bool]
) -> dict[Place, Shard]:
    """Samples by themselves, each as a shard of one row that agrees with the manifest.

    Left out is what takes more than some seconds, what does not agree, and everything where whole
    shards cost less or there is no samples table: shards have it too, and say what is wrong.

    Args:
        corpora: those that the places number through.
        places: what is wanted.
        is_near: whether a shard need not be fetched from storage.
    """
    needs = [need for need in _needs(corpora, places, is_near) if need.worthwhile]
    deadline = time.monotonic() + _LONGEST_S
    pool = ThreadPoolExecutor(_THREADS, "gear-first")
    parts = [
        pool.submit(_locate, need, part)
        for need in needs
        for part in parts_with(need.corpus.manifest, set(need.rows))
    ]
    jobs = [job for found in _results(parts, deadline) for job in found]
    reads = [pool.submit(_read_sample, *job) for job in jobs]
    samples = dict(_results(reads, deadline))
    # What hangs is not waited for: whole shards may come meanwhile.
    done = all(part.done() for part in parts) and all(read.done() for read in reads)
    pool.shutdown(wait=done, cancel_futures=True)
    return samples


def _needs(
    corpora: Sequence[Corpus], places: Sequence[Place], is_near: Callable[[ShardInfo], bool]
) -> Iterator[_Need]:
    first = 0
    for corpus in corpora:
        shards = corpus.manifest.shards
        rows: dict[int, list[int]] = defaultdict(list)
        for number, row in dict.fromkeys(places):
            if first <= number < first + len(shards) and not is_near(shards[number - first]):
                rows[number - first].append(row)
        yield _Need(corpus, first, rows)
        first += len(shards)


def _results(futures: Sequence[Future[Result]], deadline: float) -> Iterator[Result]:
    """Of those that are done in time and did not fail."""
    done, _ = wait(futures, max(0.0, deadline - time.monotonic()))
    for future in futures:
        if future in done and not isinstance(future.exception(), (DataError, ValueError)):
            yield future.result()


def _locate(need: _Need, part: TablePart) -> list[tuple[_Need, int, int, SampleSpan]]:
    found = read_spans(need.corpus.storage, part, need.rows)
    return [(need, shard, row, span) for (shard, row), span in found.items()]


def _read_sample(need: _Need, shard: int, row: int, span: SampleSpan) -> tuple[Place, Shard]:
    """One sample; ValueError where it is not what the manifest says."""
    key = need.corpus.manifest.shards[shard].key
    data = need.corpus.storage.read_range(key, span.start, span.length)
    sample = index_samples(data + _TAR_END)
    captions = sample.captions(0) if len(sample.keys) == 1 else ()
    agrees = len(sample.keys) == 1 and span == span._replace(
        xxh3=xxhash.xxh3_128_hexdigest(sample.image(0)),
        class_index=sample.class_index(0),
        num_captions=len(captions),
        caption_chars=sum(map(len, captions)),
    )
    if not agrees:
        raise ValueError(f"{key}: row {row} differs from the manifest")
    return (need.first_shard + shard, row), sample
