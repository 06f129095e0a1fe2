"""What the loader lives through: bad samples, failing and slow reads, a store that misbehaves."""

import os
import threading
import time
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from fault_proxy import FAULTS, fault_proxy
from gear_cluster.demo.object_store import StoreEndpoint
from gear_dist.data import fetching
from gear_dist.data import plan as plan_module
from gear_dist.data.corpus import Corpus, open_corpus
from gear_dist.data.fetching import FetchSettings, ShardFetcher
from gear_dist.data.loader import build_loader
from gear_dist.errors import DataError
from gear_dist.storage.local import FileStorage
from gear_dist.storage.open import open_storage
from loader_cases import SMALL, all_keys, make_loader, numbered_samples, same, take, write_corpus
from refusals import refused


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """Six shards of ten samples, the grey of each its number."""
    return write_corpus(tmp_path / "c", [numbered_samples(10, first=10 * n) for n in range(6)])


@pytest.fixture
def spoiled(tmp_path: Path) -> str:
    """The same with three bad samples: no image, no class number, and the last of its shard."""
    shards = [numbered_samples(10, first=10 * n) for n in range(6)]
    shards[1][3]["png"] = b"no image"
    shards[2][0]["cls"] = b"cat"
    shards[4][9]["png"] = shards[4][9]["png"][:40]
    return write_corpus(tmp_path / "spoiled", shards)


BAD = {"00000013": "00000014", "00000020": "00000021", "00000049": "00000040"}
"""Keys of the bad samples of `spoiled`, and their neighbours."""


def test_a_bad_sample_is_replaced_named_and_counted(corpus: str, spoiled: str) -> None:
    options = {"batch_size": 12, "num_classes": 2, "max_bad_share": 0.05}
    good = make_loader(corpus, **options)
    loader = make_loader(spoiled, **options)
    with pytest.warns(UserWarning, match="sample skipped") as caught:
        found = take(loader, 5)
    expected = [BAD.get(key, key) for key in all_keys(take(good, 5))]
    assert all_keys(found) == expected
    for batch in found:
        assert (batch.images[:, 0, 0, 0].numpy() == [int(key) for key in batch.keys]).all()
    assert loader.bad_samples.count == len(caught) == 3
    named = sorted(loader.bad_samples.take_names())
    assert loader.bad_samples.take_names() == []
    assert [name.split("shards/")[1][:27] for name in named] == [
        f"00000{int(key) // 10}.tar: sample {key}" for key in BAD
    ]
    assert "does not decode" in named[0]
    assert "is not a number" in named[1]


@pytest.mark.parametrize("threads", [1, 3])
def test_replacement_is_the_same_on_any_number_of_ranks(spoiled: str, threads: int) -> None:
    options = {"num_classes": 2, "max_bad_share": 0.2, "decode_threads": threads}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = take(make_loader(spoiled, batch_size=12, lanes=4, **options), 10)
        parts = [
            take(
                make_loader(spoiled, batch_size=4, rank=rank, world_size=3, lanes=4, **options),
                10,
            )
            for rank in range(3)
        ]
    for number, batch in enumerate(whole):
        assert list(batch.keys) == [key for part in parts for key in part[number].keys]


def test_bad_samples_of_every_epoch_count_anew(spoiled: str) -> None:
    """Three of sixty in an epoch are allowed, in as many epochs as may come."""
    loader = make_loader(spoiled, batch_size=12, num_classes=2, max_bad_share=0.05)
    with pytest.warns(UserWarning, match="skipped") as caught:
        take(loader, 20)
    assert len(caught) == 3, "each is named once"
    assert loader.bad_samples.count == 3


def test_too_many_bad_samples(spoiled: str) -> None:
    loader = make_loader(spoiled, batch_size=12, num_classes=2, max_bad_share=0.04)
    with (
        pytest.warns(UserWarning, match="skipped"),
        refused(DataError, f"{spoiled}/shards", "sample", "3 bad samples", "data.max_bad_share"),
    ):
        take(loader, 5)
    strict = make_loader(spoiled, batch_size=60, num_classes=2)
    with (
        pytest.warns(UserWarning, match="skipped"),
        refused(DataError, f"{spoiled}/shards", "1 bad samples", "data.max_bad_share"),
    ):
        take(strict, 1)


def test_a_shard_without_a_good_sample(tmp_path: Path) -> None:
    samples = [{"png": b"", "cls": b"0"}] * 3
    address = write_corpus(tmp_path / "x", [numbered_samples(4), samples])
    loader = make_loader(address, batch_size=7, num_classes=2, max_bad_share=0.9)
    with (
        pytest.warns(UserWarning, match="empty file"),
        refused(DataError, "shards/000001.tar") as caught,
    ):
        take(loader, 1)
    assert "data.max_bad_share" not in str(caught.value), "no share of bad samples would do"


class FlakyStorage(FileStorage):
    """Fails, damages or delays the first reads of each shard."""

    def __init__(self, root: Path, faults: list[str]) -> None:
        super().__init__(root)
        self.faults = faults
        self.reads: Counter[str] = Counter()
        self.released = threading.Event()

    def read(self, key: str) -> bytes:
        number = self.reads[key]
        self.reads[key] += 1
        fault = self.faults[number] if number < len(self.faults) else "none"
        if fault == "fail":
            raise DataError("planted: the store does not answer")
        if fault == "hang" and key.endswith("3.tar"):
            self.released.wait(20)
        data = super().read(key)
        return data[:-1] + b"x" if fault == "damage" else data


def flaky_loader(address: str, faults: list[str], **data):
    storage = FlakyStorage(open_storage(address).root, faults)
    loader = make_loader(address, batch_size=12, num_classes=2, **data)
    loader.corpora = (Corpus(storage, loader.corpora[0].manifest),)
    return loader, storage


@pytest.fixture
def quick_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "FIRST_PAUSE_S", 0.01)


@pytest.mark.usefixtures("quick_pauses")
@pytest.mark.parametrize("faults", [["fail"] * 5, ["damage", "fail", "damage"]])
def test_failed_reads_are_tried_again(corpus: str, faults: list[str]) -> None:
    expected = take(make_loader(corpus, batch_size=12, num_classes=2), 10)
    loader, storage = flaky_loader(corpus, faults, read_attempts=6)
    assert same(take(loader, 10), expected)
    assert set(storage.reads.values()) == {len(faults) + 1}


@pytest.mark.usefixtures("quick_pauses")
def test_reads_that_go_on_failing_are_an_error(corpus: str) -> None:
    loader, storage = flaky_loader(corpus, ["fail"] * 99, read_attempts=4)
    with refused(DataError, "planted"):
        take(loader, 1)
    assert max(storage.reads.values()) == 4
    loader, storage = flaky_loader(corpus, ["damage"] * 99)
    with refused(DataError, "checksum", "gear-dist shard"):
        take(loader, 1)
    assert max(storage.reads.values()) == fetching.DAMAGED_READS


def test_one_slow_object_stalls_nothing(corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that hangs is asked for again beside the first."""
    monkeypatch.setattr(fetching, "LEAST_PATIENCE_S", 0.2)
    loader, storage = flaky_loader(corpus, ["hang"])
    batches = iter(loader)
    found = [next(batches) for _ in range(10)]
    assert storage.reads["shards/000003.tar"] == 2
    storage.released.set()
    loader.close()
    assert same(found, take(make_loader(corpus, batch_size=12, num_classes=2), 10))


def test_shards_are_fetched_beside_one_another(
    corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "KEEP_BYTES", 0)
    at_once, most = 0, 0
    lock, real = threading.Lock(), FileStorage.read

    def slow(storage: FileStorage, key: str) -> bytes:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.05)
        with lock:
            at_once -= 1
        return real(storage, key)

    loader = make_loader(corpus, batch_size=12, num_classes=2, shuffle_buffer_shards=6)
    monkeypatch.setattr(FileStorage, "read", slow)
    take(loader, 5)
    assert most >= 4


def test_shards_in_use_are_held_once(corpus: str) -> None:
    storage = FlakyStorage(open_storage(corpus).root, [])
    fetcher = ShardFetcher([Corpus(storage, open_corpus(corpus).manifest)], FetchSettings())
    for _ in range(2):
        fetcher.acquire(1)
    assert fetcher.get(1).keys == fetcher.get(1).keys == [f"{n:08d}" for n in range(10, 20)]
    fetcher.release(1)
    fetcher.get(1)
    fetcher.release(1)
    fetcher.acquire(1)
    fetcher.get(1)
    fetcher.close()
    assert storage.reads == {"shards/000001.tar": 2}


def test_forty_per_cent_of_gets_faulty(
    object_store: StoreEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs through a store whose answers fail, break off, or take long: nothing is lost."""
    local = write_corpus(tmp_path / "c", [numbered_samples(5, first=5 * n) for n in range(40)])
    remote = open_storage("s3://gear-tests-faulty/corpus")
    for item in open_storage(local).list():
        remote.write(item.key, open_storage(local).read(item.key))
    monkeypatch.setattr(plan_module, "KEEP_BYTES", 0)
    share = {"batch_size": 10, "rank": 0, "world_size": 1, "seed": 0, "num_classes": 2}
    config = replace(SMALL, shuffle_buffer_shards=10)
    expected = take(build_loader(config, local, **share), 40)
    with fault_proxy(os.environ["AWS_ENDPOINT_URL"], 0.4) as (endpoint, proxy):
        through = replace(config, endpoint=endpoint)
        found = take(build_loader(through, "s3://gear-tests-faulty/corpus", **share), 40)
    assert same(found, expected)
    assert Counter(all_keys(found)) == dict.fromkeys((f"{n:08d}" for n in range(200)), 2)
    assert all(proxy.done[fault] for fault in FAULTS), proxy.done


def write_credentials(path: Path, store: StoreEndpoint, token: str) -> None:
    known = store.environment()
    path.write_text(
        f"[default]\naws_access_key_id={known['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key={known['AWS_SECRET_ACCESS_KEY']}\naws_session_token={token}\n"
    )


def test_credentials_that_expire_are_read_anew(
    object_store: StoreEndpoint, corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a run their file is replaced; where it is not, the error names them."""
    remote = open_storage("s3://gear-tests-expiry/corpus")
    for item in open_storage(corpus).list():
        remote.write(item.key, open_storage(corpus).read(item.key))
    path = tmp_path / "credentials"
    write_credentials(path, object_store, "first")
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(plan_module, "KEEP_BYTES", 0)
    monkeypatch.setattr(fetching, "FIRST_PAUSE_S", 0.01)
    share = {"batch_size": 10, "rank": 0, "world_size": 1, "seed": 0, "num_classes": 2}
    config = replace(SMALL, shuffle_buffer_shards=1, prefetch_batches=1)
    expected = take(build_loader(config, corpus, **share), 24)
    with fault_proxy(endpoint, 0.0) as (through, proxy):
        loader = build_loader(
            replace(config, endpoint=through), "s3://gear-tests-expiry/corpus", **share
        )
        batches = iter(loader)
        found = [next(batches) for _ in range(4)]
        proxy.expired_tokens.add("first")
        write_credentials(path, object_store, "second")
        found += [next(batches) for _ in range(20)]
        assert same(found, expected)
        assert proxy.done["expired"] >= 1
        proxy.expired_tokens.add("second")
        with refused(DataError, through, "ExpiredToken", "AWS_ACCESS_KEY_ID"):
            all_keys([next(batches) for _ in range(12)])
        loader.close()
