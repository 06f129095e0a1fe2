"""How a loader starts: its first batch by ranged reads, and what it may hold in memory."""

import threading
from pathlib import Path

import pytest

from gear_dist.data import first_samples
from gear_dist.data import manifest as manifest_module
from gear_dist.data import plan as plan_module
from gear_dist.data.corpus import open_corpus
from gear_dist.data.fetching import ShardFetcher
from gear_dist.data.first_samples import Place, read_first_samples
from gear_dist.data.loader import ShardLoader
from gear_dist.data.shard_reader import read_shard
from gear_dist.errors import DataError
from gear_dist.storage.local import FileStorage
from gear_dist.storage.s3 import S3Storage
from loader_cases import all_keys, make_loader, numbered_samples, same, take, write_corpus
from refusals import refused
from sample_shards import SampleShards


@pytest.fixture(autouse=True)
def ranged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small shards in lanes, as if they were large."""
    monkeypatch.setattr(plan_module, "KEEP_BYTES", 0)
    monkeypatch.setattr(first_samples, "_BYTES_A_READ", 0)


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """Twelve shards of ten samples; two and a caption a sample."""
    shards = [numbered_samples(10, first=10 * n) for n in range(12)]
    for number, samples in enumerate(shards):
        for row, sample in enumerate(samples):
            sample["txt"] = f"caption {number} {row}".encode()
    return write_corpus(tmp_path / "c", shards)


def places_of(address: str) -> list[Place]:
    return [
        (info.shard, row)
        for info in open_corpus(address).manifest.shards
        for row in range(info.samples)
    ]


def nothing_near(_) -> bool:
    return False


@pytest.fixture
def held_up(monkeypatch: pytest.MonkeyPatch):
    """Whole shards do not come before the event."""
    released = threading.Event()
    for storage in (FileStorage, S3Storage):
        real = storage.read

        def read(self, key: str, real=real) -> bytes:
            if key.endswith(".tar"):
                released.wait(20)
            return real(self, key)

        monkeypatch.setattr(storage, "read", read)
    yield released
    released.set()


def resumed(loader: ShardLoader, **position: int) -> ShardLoader:
    loader.load_state_dict({**loader.state_dict(), **position})
    return loader


@pytest.mark.parametrize("place", ["file", "s3"])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_first_batch_waits_for_no_shard(
    sample_shards: SampleShards, held_up: threading.Event, place: str, threads: int
) -> None:
    address = f"{getattr(sample_shards, place)}/train"
    options = {"shuffle_buffer_shards": 4, "decode_threads": threads}
    loader = resumed(make_loader(address, **options), step=7)
    batches = iter(loader)
    found = [next(batches)]
    held_up.set()
    found += [next(batches) for _ in range(12)]
    loader.close()
    assert same(found, take(make_loader(address, **options), 20)[7:])


@pytest.mark.parametrize("micro", [0, 1])
def test_the_first_of_accumulated_batches(
    corpus: str, held_up: threading.Event, micro: int
) -> None:
    share = {"batch_size": 4, "world_size": 2, "rank": 1, "accumulation": 2, "num_classes": 2}
    loader = resumed(make_loader(corpus, captions="first", **share), step=3, micro=micro)
    batches = iter(loader)
    found = [next(batches)]
    held_up.set()
    found += [next(batches) for _ in range(5)]
    loader.close()
    straight = take(make_loader(corpus, captions="first", **share), 12 + micro)
    assert same(found, straight[6 + micro : 12 + micro])


def test_samples_alone_are_those_of_their_shards(
    corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a table in several parts and row groups, also as the second of two corpora."""
    opened = open_corpus(corpus)
    places = places_of(corpus)
    found = read_first_samples([opened], places, nothing_near)
    assert sorted(found) == places
    for (number, row), alone in found.items():
        shard = read_shard(opened.storage, opened.manifest.shards[number])
        assert alone.sample(0) == shard.sample(row)
    shifted = [(number + 12, row) for number, row in places]
    assert sorted(read_first_samples([opened, opened], shifted, nothing_near)) == shifted
    assert not read_first_samples([opened], places, lambda info: True)


def test_a_table_in_parts_and_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = manifest_module.pq.write_table
    monkeypatch.setattr(manifest_module, "PART_SAMPLES", 45)
    monkeypatch.setattr(
        manifest_module.pq,
        "write_table",
        lambda *args, **options: real(*args, **{**options, "row_group_size": 7}),
    )
    shards = [numbered_samples(10, first=10 * n) for n in range(12)]
    address = write_corpus(tmp_path / "parts", shards)
    opened = open_corpus(address)
    assert len(opened.manifest.info.samples_keys) == 3
    found = read_first_samples([opened], places_of(address), nothing_near)
    assert len(found) == 120
    assert found[7, 3].keys == ["00000073"]


def test_a_bad_sample_in_the_first_batch(tmp_path: Path) -> None:
    """It is counted, named and replaced as everywhere."""
    shards = [numbered_samples(10, first=10 * n) for n in range(6)]
    shards[1][3]["png"] = b"no image"
    shards[2][0]["cls"] = b"cat"
    address = write_corpus(tmp_path / "spoiled", shards)
    loader = make_loader(address, batch_size=60, num_classes=2, max_bad_share=0.05)
    assert len(read_first_samples(loader.corpora, places_of(address), nothing_near)) == 59
    with pytest.warns(UserWarning, match="sample skipped") as caught:
        (batch,) = take(loader, 1)
    assert len(caught) == loader.bad_samples.count == 2
    assert sorted(batch.keys).count("00000014") == 2
    assert sorted(batch.keys).count("00000021") == 2


def spoil(address: str, key: str, offset: int, new: bytes) -> None:
    path = open_corpus(address).storage.root / key
    data = bytearray(path.read_bytes())
    data[offset : offset + len(new)] = new
    path.write_bytes(data)


@pytest.mark.parametrize("offset", [4, 400, -40])
def test_a_damaged_table_costs_time_only(corpus: str, offset: int) -> None:
    expected = take(make_loader(corpus, num_classes=2), 3)
    loader = make_loader(corpus, num_classes=2)
    spoil(corpus, "manifest/samples-00000.parquet", offset, bytes(range(30)))
    assert same(take(loader, 3), expected)


def test_what_does_not_agree_is_left_to_its_shard(corpus: str) -> None:
    """An image, a name and a caption that have changed; the shard's checksum finds them."""
    opened = open_corpus(corpus)
    parts = read_shard(opened.storage, opened.manifest.shards[5]).parts
    for row, offset in enumerate(
        (parts[0]["png"][0] + 60, parts[1]["png"][0] - 512, parts[2]["txt"][0] - 512 + 130)
    ):
        spoil(corpus, "shards/000005.tar", offset, b"~")
        places = [place for place in places_of(corpus) if place[0] == 5]
        assert len(read_first_samples([opened], places, nothing_near)) == 9 - row
    loader = make_loader(corpus, batch_size=120, num_classes=2)
    with refused(DataError, "shards/000005.tar", "checksum", "gear-dist shard"):
        take(loader, 1)


def test_ranged_reads_that_hang_are_not_waited_for(
    corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = take(make_loader(corpus, num_classes=2), 3)
    released, real = threading.Event(), FileStorage.read_range

    def hanging(self, key: str, start: int, length: int) -> bytes:
        if key.endswith(".tar"):
            released.wait(20)
        return real(self, key, start, length)

    monkeypatch.setattr(first_samples, "_LONGEST_S", 0.2)
    monkeypatch.setattr(FileStorage, "read_range", hanging)
    found = take(make_loader(corpus, num_classes=2), 3)
    assert not released.is_set()
    released.set()
    assert same(found, expected)


def test_samples_are_not_read_one_by_one_where_shards_cost_less(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_corpus(corpus)
    shard_bytes = opened.manifest.shards[0].bytes
    monkeypatch.setattr(first_samples, "_BYTES_A_READ", shard_bytes // 4)
    assert len(read_first_samples([opened], [(0, row) for row in range(3)], nothing_near)) == 3
    assert not read_first_samples([opened], [(0, row) for row in range(4)], nothing_near)


def most_held(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of shards after each that was acquired."""
    held: list[int] = []
    real = ShardFetcher.acquire

    def acquire(fetcher: ShardFetcher, shard: int) -> None:
        real(fetcher, shard)
        held.append(fetcher.held_bytes)
        assert fetcher.held_bytes == sum(
            fetcher._sources[number][1].bytes for number in fetcher._open
        )

    monkeypatch.setattr(ShardFetcher, "acquire", acquire)
    return held


@pytest.fixture
def many_shards(tmp_path: Path) -> str:
    """Sixty-four of five samples, each of the same bytes."""
    return write_corpus(tmp_path / "m", [numbered_samples(5, first=5 * n) for n in range(64)])


def test_memory_for_shards_is_bounded(many_shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window is one shard, or two at the ends of a lane."""
    shard_bytes = open_corpus(many_shards).manifest.shards[0].bytes
    options = {"batch_size": 16, "num_classes": 2, "shuffle_buffer_shards": 8}
    assert make_loader(many_shards, **options).describe()["lanes"] == [8]
    small = make_loader(many_shards, shard_memory_bytes=5 * shard_bytes, **options)
    assert (small.describe()["lanes"], small.describe()["window_shards"]) == ([2], 1)
    held = most_held(monkeypatch)
    batches = take(small, 40)
    assert 4 * shard_bytes <= max(held) <= 5 * shard_bytes
    assert [len(set(all_keys(batches[i : i + 20]))) for i in (0, 20)] == [320, 320]


def test_another_memory_changes_nothing_that_is_yielded(
    many_shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither at a restart on fewer workers, of which each has more lanes than fit.

    Then it holds their windows, two shards each at the ends of lanes, and one lane's next.
    """
    shard_bytes = open_corpus(many_shards).manifest.shards[0].bytes
    share = {"num_classes": 2, "shuffle_buffer_shards": 8}
    first = make_loader(many_shards, batch_size=4, world_size=4, **share)
    straight = [
        take(make_loader(many_shards, batch_size=4, world_size=4, rank=rank, **share), 42)
        for rank in range(4)
    ]
    take(first, 2)
    held = most_held(monkeypatch)
    for memory_bytes, limit in ((100 * shard_bytes, 24), (12 * shard_bytes, 17), (1, 17)):
        again = make_loader(many_shards, batch_size=16, shard_memory_bytes=memory_bytes, **share)
        again.load_state_dict(first.state_dict())
        assert again.describe()["lanes"] == [8]
        held.clear()
        for number, batch in enumerate(take(again, 40)):
            assert list(batch.keys) == all_keys([rank[2 + number] for rank in straight])
        assert max(held) <= limit * shard_bytes
