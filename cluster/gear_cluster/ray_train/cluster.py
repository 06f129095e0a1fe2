"""The Ray cluster that a run uses: the one that RAY_ADDRESS names, or a private local one."""

import contextlib
import os
import sys
from collections.abc import Iterator

from gear_dist.distributed.environment_variables import environment
from gear_dist.distributed.private_ray import private_ray
from gear_dist.distributed.ray_cluster import check_ray_address, connected_ray
from gear_dist.redaction import redact_text

# Matches every line that Ray would print for its own processes and for workers.
SKIP_OUTPUT = {"RAY_DEDUP_LOGS_SKIP_REGEX": ".*"}


def _is_connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


@contextlib.contextmanager
def ray_cluster(num_workers: int, verbose: bool) -> Iterator[None]:
    """Connect to RAY_ADDRESS (set inside `ray job submit`), else start a cluster and end it.

    A process that is connected already keeps its cluster and its connection.

    A local cluster (`private_ray`) has as many logical CPUs as its workers need, so that two
    workers run on one core too.

    Raises:
        ConfigError: RAY_ADDRESS cannot be used.
        StorageError: the temporary folder cannot be written.
    """
    if _is_connected():
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "")
    check_ray_address(address)
    num_cpus = max(os.cpu_count() or 1, num_workers, 2)
    shown = f"connecting to Ray at {redact_text(address)}" if address else "starting Ray"
    print(f"{shown}; the first step takes a while", flush=True)
    # Read when Ray is imported first, which is below.
    cluster = (
        connected_ray(address, verbose=verbose)
        if address
        else private_ray(num_cpus, verbose=verbose)
    )
    with environment({} if verbose else SKIP_OUTPUT), cluster:
        yield
