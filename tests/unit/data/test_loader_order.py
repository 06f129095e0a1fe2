"""The order by itself: equal ranks, nothing twice, world size without influence, good mixing."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest

from gear_dist.data.order import (
    MixtureComponent,
    Order,
    choose_lanes,
    sequential_windows,
    split_lanes,
)

Samples = list[tuple[int, int]]


def make_order(
    counts: np.ndarray, *, lanes: int = 1, global_batch: int = 32, seed: int = 0, **options
) -> Order:
    settings = {"window_shards": 1, **options}
    return Order(
        [MixtureComponent(counts, 0, lanes)], global_batch=global_batch, seed=seed, **settings
    )


def rank_samples(
    order: Order, rank: int, world_size: int, steps: int, first_step: int = 0
) -> list[Samples]:
    """Shard and row of what a rank sees, step by step."""
    lanes = []
    for places in order.lane_slices(rank, world_size):
        windows = order.windows(places, first_step)
        rows = (
            pair
            for window in windows
            for pair in zip(window.shards.tolist(), window.rows.tolist(), strict=True)
        )
        lanes.append((rows, places.stop - places.start))
    return [[next(rows) for rows, count in lanes for _ in range(count)] for _ in range(steps)]


def epoch_numbers(order: Order, counts: np.ndarray, steps: int) -> np.ndarray:
    """(steps, G) numbers in source order of the global sequence."""
    starts = np.cumsum(counts) - counts
    rows = rank_samples(order, 0, 1, steps)
    return np.array([[starts[shard] + row for shard, row in step] for step in rows])


@pytest.mark.parametrize("case", range(200))
def test_random_cases(case: int) -> None:
    """Shards, ranks (also more than shards), lanes, windows and tails at random."""
    random = np.random.default_rng(case)
    counts = random.integers(0, 40, random.integers(1, 30))
    counts[0] += 1
    world_size, per_rank = int(random.integers(1, 40)), int(random.integers(1, 9))
    total = world_size * per_rank
    lanes = int(random.choice([n for n in range(1, total + 1) if total % n == 0]))
    tail = ("drop", "repeat")[case % 2]
    options = {"window_shards": int(random.integers(0, 4)), "tail": tail, "seed": case}

    def order() -> Order:
        return make_order(counts, lanes=lanes, global_batch=total, **options)

    epoch_count = order().epoch_counts[0]
    assert epoch_count.steps == (
        counts.sum() // total if tail == "drop" else -(-counts.sum() // total)
    )
    if epoch_count.steps == 0:
        return
    plan = order()
    ranks = [rank_samples(plan, rank, world_size, epoch_count.steps) for rank in range(world_size)]
    assert {len(step) for rank in ranks for step in rank} == {per_rank}
    seen = Counter(pair for rank in ranks for step in rank for pair in step)
    assert all(0 <= row < counts[shard] for shard, row in seen)
    if tail == "drop":
        assert max(seen.values()) == 1
        assert len(seen) == counts.sum() - epoch_count.dropped
    else:
        assert len(seen) == counts.sum()
        assert sum(seen.values()) == counts.sum() + epoch_count.repeated
    whole = rank_samples(order(), 0, 1, epoch_count.steps)
    for number, step in enumerate(whole):
        joined = [pair for rank in ranks for pair in rank[number]]
        assert step == joined, "the number of ranks does not change the sequence"
    rank, first = int(random.integers(world_size)), int(random.integers(epoch_count.steps))
    rest = rank_samples(order(), rank, world_size, epoch_count.steps - first, first)
    assert rest == ranks[rank][first:], "a resumed order is that of a straight run"


def test_the_next_epoch_follows() -> None:
    counts = np.full(6, 20)
    order = make_order(counts, lanes=4, global_batch=8)
    steps = order.epoch_counts[0].steps
    both = rank_samples(order, 0, 1, 2 * steps)
    assert rank_samples(order, 0, 1, steps, steps) == both[steps:]
    first, second = ([pair for step in part for pair in step] for part in (both[:15], both[15:]))
    assert sorted(first) == sorted(second)
    assert first != second


def test_every_sample_has_its_turn_though_each_epoch_drops_some() -> None:
    """The tail is another one each epoch, even with a single shard."""
    order = make_order(np.array([50]), global_batch=32, window_shards=0)
    assert (order.epoch_counts[0].steps, order.epoch_counts[0].dropped) == (1, 18)
    seen = {pair for step in rank_samples(order, 0, 1, 12) for pair in step}
    assert len(seen) == 50


def test_a_rank_reads_its_lanes_only() -> None:
    """Reading is shared out: all ranks together open each shard about once."""
    counts = np.full(64, 100)
    order = make_order(counts, lanes=8, global_batch=64)
    opened = [
        {shard for step in rank_samples(order, rank, 8, 100) for shard, _ in step}
        for rank in range(8)
    ]
    assert sum(map(len, opened)) <= 64 + 2 * 8
    assert max(map(len, opened)) <= 10


def correlation(numbers: np.ndarray) -> float:
    return float(np.corrcoef(np.arange(numbers.size), numbers.ravel())[0, 1])


def distinct_classes(numbers: np.ndarray, classes: np.ndarray) -> float:
    """Mean number of different classes in a batch."""
    return float(np.mean([len(set(classes[batch])) for batch in numbers]))


@pytest.mark.parametrize(("lanes", "window_shards"), [(1, 8), (8, 1), (32, 1)])
def test_shuffle_quality(lanes: int, window_shards: int) -> None:
    """Rank correlation with the source order and mixing of classes, against a true permutation.

    Shards mix the classes, as ours do.
    """
    counts = np.full(64, 100)
    random = np.random.default_rng(0)
    classes = random.integers(0, 100, 6400)
    found, true = [], []
    for seed in range(25):
        order = make_order(counts, lanes=lanes, seed=seed, window_shards=window_shards)
        numbers = epoch_numbers(order, counts, 200)
        permutation = random.permutation(6400).reshape(200, 32)
        found.append((correlation(numbers), distinct_classes(numbers, classes)))
        true.append((correlation(permutation), distinct_classes(permutation, classes)))
    (ours, mixing), (_, true_mixing) = np.mean(found, axis=0), np.mean(true, axis=0)
    # One order of 64 shards has a standard deviation of 0.12; the mean of 25 of 0.025.
    assert abs(ours) < 0.1
    assert mixing > 0.98 * true_mixing
    shards_of_batch = [len(set(batch // 100)) for batch in numbers]
    assert np.mean(shards_of_batch) > 7, "a batch draws from 8 shards at least"


def test_a_single_window_is_a_true_permutation() -> None:
    """What corpora get that are kept in memory: no trace of shards is left."""
    counts = np.full(12, 100)
    gaps = []
    for seed in range(10):
        order = make_order(counts, global_batch=16, seed=seed, window_shards=0)
        numbers = epoch_numbers(order, counts, 75).ravel()
        assert sorted(numbers) == list(range(1200))
        gaps.append(np.mean(np.diff(numbers) == 1))
        assert abs(correlation(numbers)) < 0.15
    assert np.mean(gaps) < 0.005


def test_a_plan_for_a_hundred_million_samples() -> None:
    """At most 300 MB; anything that lists samples takes 800 MB."""
    tracemalloc.start()
    counts = np.full(100_000, 1000)
    order = make_order(counts, lanes=64, global_batch=4096)
    for places in order.lane_slices(1, 8):
        windows = order.windows(places, 20_000)
        next(windows)
        window = next(windows)
        assert 500 <= len(window.rows) <= 1500
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300e6


def test_a_mixture_gives_each_part_its_lanes() -> None:
    big, small = np.full(10, 100), np.full(3, 30)
    order = Order(
        [MixtureComponent(big, 0, 6), MixtureComponent(small, 10, 2)],
        global_batch=16,
        seed=0,
        window_shards=1,
    )
    assert [epoch_count.steps for epoch_count in order.epoch_counts] == [83, 22]
    steps = rank_samples(order, 0, 1, 60)
    for step in steps:
        assert sum(shard >= 10 for shard, _ in step) == 4
    first = [pair for step in steps[:22] for pair in step if pair[0] >= 10]
    second = [pair for step in steps[22:44] for pair in step if pair[0] >= 10]
    assert len(set(first)) == len(set(second)) == 88
    assert first != second


def test_choice_of_lanes() -> None:
    assert choose_lanes(256, 1, at_least=8) == (8,)
    assert choose_lanes(256, 64, at_least=8) == (64,), "each rank has lanes of its own"
    assert choose_lanes(6, 2, at_least=8) == (6,), "no more than there is room for"
    assert choose_lanes(16, 1, weights=(3, 1)) == (3, 1)
    mixed = choose_lanes(256, 8, at_least=8, weights=(0.7, 0.3))
    assert mixed == (45, 19), "shares to one in a hundred"
    assert choose_lanes(256, 8, at_least=8, at_most=32, weights=(0.7, 0.3)) == (11, 5)
    assert choose_lanes(240, 1, at_least=8, at_most=7) == (6,)
    assert choose_lanes(256, 64, at_least=8, at_most=3) == (64,), "fewer are not possible"
    assert choose_lanes(2, 2, weights=(1, 1, 1)) == ()
    assert split_lanes(4, (1000, 1, 1)) == (2, 1, 1)


def test_sequential_windows() -> None:
    counts = np.array([3, 0, 4])
    starts = np.cumsum(counts) - counts
    seen = [
        [
            int(starts[shard] + row)
            for window in sequential_windows(counts, 2, rank, 2, limit)
            for shard, row in zip(window.shards, window.rows, strict=True)
        ]
        for limit in (7, 3)
        for rank in range(2)
    ]
    assert seen == [[0, 1, 4, 5], [2, 3, 6], [0, 1], [2]]
