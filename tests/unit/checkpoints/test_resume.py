"""The accumulation that a number of workers needs, so that the global batch stays."""

import pytest

from gear_dist.checkpoints.resume import fit_workers
from gear_dist.config.loading import load_config
from gear_dist.config.schema import RunConfig
from gear_dist.distributed import collectives
from gear_dist.errors import ConfigError
from refusals import refused


def accumulation(config: RunConfig, workers: int, monkeypatch, first=None) -> int:
    monkeypatch.setattr(collectives, "world_size", lambda: workers)
    state = {"first_workers": first[0], "first_micro_batch": first[1]} if first else None
    return fit_workers(config.run, config.engine, state).accumulation


@pytest.mark.parametrize(
    ("workers", "first", "settings", "expected"),
    [
        (4, None, [], 2),  # a new run, as configured: 4 x 2 x 8
        (2, None, ["run.workers=4"], 4),  # fewer than wanted: no more than 8 at a time
        (2, None, ["run.workers=4", "engine.max_micro_batch=16"], 2),
        (4, (4, 8), [], 2),
        (2, (4, 8), [], 4),
        (8, (4, 8), [], 1),
        (2, (4, 8), ["engine.max_micro_batch=16"], 2),
        (4, (4, 8), ["engine.max_micro_batch=64"], 2),  # as many as at first: as at first
        (2, (2, 8), ["run.workers=4"], 4),  # begun with fewer than wanted, and still
        (4, (2, 8), ["run.workers=4"], 2),  # and as many as wanted now
    ],
)
def test_no_worker_takes_more_at_a_time(workers, first, settings, expected, monkeypatch):
    words = ["engine.global_batch=64", "engine.accumulation=2", *settings]
    config = load_config(None, words)
    assert accumulation(config, workers, monkeypatch, first) == expected


def test_workers_that_do_not_divide_the_batch_are_refused(monkeypatch):
    config = load_config(None, ["engine.global_batch=64"])
    for first, workers in ((None, "3 x 1"), ((4, 16), "3 workers")):
        with refused(ConfigError, "engine.global_batch=64", workers):
            accumulation(config, 3, monkeypatch, first)
