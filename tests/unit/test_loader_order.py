"""The order of an epoch, by itself: equal ranks, nothing twice, world size without influence."""

import numpy as np
import pytest

from gear_dist.data.order import Share, epoch_windows, sequential_windows


def rank_order(counts: np.ndarray, share: Share, window_shards: int, **options: int) -> np.ndarray:
    """Global numbers of the samples that a rank sees in epoch 0, in order."""
    starts = np.cumsum(counts) - counts
    windows = epoch_windows(
        counts,
        share,
        seed=options.get("seed", 0),
        epoch=0,
        window_shards=window_shards,
        first_batch=options.get("first_batch", 0),
    )
    parts = [starts[window.shards] + window.rows for window in windows]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


@pytest.mark.parametrize("case", range(200))
def test_random_cases(case: int) -> None:
    random = np.random.default_rng(case)
    counts = random.integers(0, 40, random.integers(1, 30))
    world_size, batch_size = int(random.integers(1, 40)), int(random.integers(1, 9))
    window_shards = int(random.integers(1, 8))
    ranks = [
        rank_order(counts, Share(batch_size, rank, world_size), window_shards)
        for rank in range(world_size)
    ]
    num_batches = counts.sum() // (batch_size * world_size)
    assert {len(rank) for rank in ranks} == {num_batches * batch_size}
    seen = np.concatenate(ranks)
    assert len(set(seen.tolist())) == len(seen)
    assert len(seen) == 0 or (seen.min() >= 0 and seen.max() < counts.sum())
    one = rank_order(counts, Share(batch_size * world_size, 0, 1), window_shards)
    joined = np.stack(ranks).reshape(world_size, num_batches, batch_size).transpose(1, 0, 2)
    assert np.array_equal(one, joined.ravel()), "the number of ranks does not change the sequence"
    rank, skipped = int(random.integers(world_size)), int(random.integers(num_batches + 1))
    rest = rank_order(
        counts, Share(batch_size, rank, world_size), window_shards, first_batch=skipped
    )
    assert np.array_equal(rest, ranks[rank][skipped * batch_size :])


def test_shuffle_quality() -> None:
    """Rank correlation with the source order is that of a permutation; batches mix shards."""
    counts = np.full(64, 100)
    order = rank_order(counts, Share(32, 0, 1), 8)
    # One order of 64 shards has a standard deviation of 0.12; the mean of 25 of 0.025.
    correlations = [
        np.corrcoef(np.arange(6400), rank_order(counts, Share(32, 0, 1), 8, seed=seed))[0, 1]
        for seed in range(25)
    ]
    assert abs(np.mean(correlations)) < 0.1
    shards_of_batch = [len(set(batch // 100)) for batch in order[:6400].reshape(-1, 32)]
    assert np.mean(shards_of_batch) > 7, "a batch draws from all 8 shards of its window"
    other = rank_order(counts, Share(32, 0, 1), 8, seed=1)
    assert (order != other).mean() > 0.9


def test_sequential_windows() -> None:
    counts = np.array([3, 0, 4])
    starts = np.cumsum(counts) - counts
    seen = [
        [
            int(starts[shard] + row)
            for window in sequential_windows(counts, Share(2, rank, 2), limit)
            for shard, row in zip(window.shards, window.rows, strict=True)
        ]
        for limit in (7, 3)
        for rank in range(2)
    ]
    assert seen == [[0, 1, 4, 5], [2, 3, 6], [0, 1], [2]]
