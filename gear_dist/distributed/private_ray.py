"""A Ray cluster of this process alone: loopback, an access token, a folder closed to others."""

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from gear_dist.distributed.environment_variables import environment, loopback_collectives
from gear_dist.storage.private_folder import private_folder

# One for the life of the process, because Ray caches the first that it sees.
ACCESS_TOKEN = secrets.token_hex(32)
# Workers hand images to no one through Ray: the object store carries functions and reports only.
OBJECT_STORE_BYTES = 100 * 2**20
# A socket's path has 103 characters at most on every system. Below the parent come our two folders
# (20) and Ray's /session_DATE_TIME_PID/sockets/plasma_store (64).
_LONGEST_PARENT = 103 - 20 - 64
# Ray's own setting for machines without a firewall's consent: the node's address is loopback, and
# each of Ray's servers then listens there. `_node_ip_address="127.0.0.1"` does not do it: Ray
# replaces that by the outer address, and listens on all interfaces.
_LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@contextlib.contextmanager
def private_ray(num_cpus: int, *, verbose: bool = False) -> Iterator[None]:
    """Start a local Ray cluster for the time of the block, and connect to it.

    It has no dashboard, listens on loopback alone, asks every connection for a random token, and
    keeps its files in a folder that only this user can enter, which is removed. Its workers inherit
    this process's environment.

    Args:
        num_cpus: logical CPUs; may be more than the machine has.
        verbose: show Ray's and the workers' output.

    Raises:
        StorageError: the temporary folder cannot be written.
    """
    with (
        private_folder("gear-ray-", longest_parent=_LONGEST_PARENT) as folder,
        _on_loopback(),
        environment(_variables()),
    ):
        import ray

        # Where Ray was imported before, it has already read RAY_AUTH_MODE.
        getattr(ray._raylet, "Config").initialize("")  # noqa: B009 - in no type stub
        try:
            _start(folder, num_cpus, verbose)
            yield
        finally:
            ray.shutdown()


def _start(folder: Path, num_cpus: int, verbose: bool) -> None:
    import ray

    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=verbose,
        logging_level=logging.INFO if verbose else logging.ERROR,
        _temp_dir=str(folder),
    )


def _variables() -> dict[str, str]:
    variables = {"RAY_USAGE_STATS_ENABLED": "0", **_LOOPBACK_ONLY}
    if "RAY_AUTH_MODE" not in os.environ:
        variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": ACCESS_TOKEN}
    return variables | loopback_collectives()


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """For this process: `_LOOPBACK_ONLY` is read once, when Ray is imported, which may have been
    before; and the process may connect to a cluster of several machines afterwards."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
