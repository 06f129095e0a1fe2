"""Random faults of store and process: nothing good is lost, and nothing of others."""

import os
from pathlib import Path

import pytest
from checkpoint_schedules import run_schedules

from fault_proxy import fault_proxy
from gear_cluster.demo.object_store import StoreEndpoint

NUMBER = int(os.environ.get("SOAK_SCHEDULES", "200"))
FIRST = int(os.environ.get("SOAK_FIRST", "0"))


def test_a_few_schedules(tmp_path: Path, object_store: StoreEndpoint) -> None:
    with fault_proxy(object_store.endpoint, 0) as proxy:
        events = run_schedules(range(-2, 0), object_store, proxy, tmp_path)
    assert sum(events.values()) >= 4


@pytest.mark.slow  # some twenty minutes
@pytest.mark.timeout(7200)
def test_two_hundred_schedules(tmp_path: Path, object_store: StoreEndpoint) -> None:
    with fault_proxy(object_store.endpoint, 0) as proxy:
        numbers = range(FIRST, FIRST + NUMBER)
        events = run_schedules(
            numbers, object_store, proxy, tmp_path, lambda line: print(line, flush=True)
        )
    print(f"{NUMBER} of {NUMBER}:", dict(sorted(events.items())))
