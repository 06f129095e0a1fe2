"""The Ray cluster that a run uses: the one that RAY_ADDRESS names, or a private local one."""

import contextlib
import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator

from gear_cluster.local_launch import environment
from gear_dist.config import RunConfig
from gear_dist.errors import ConfigError

# One for the life of the process, because Ray caches the first that it sees.
ACCESS_TOKEN = secrets.token_hex(32)
# Matches every line that Ray would print for its own processes and for workers.
SKIP_OUTPUT = {"RAY_DEDUP_LOGS_SKIP_REGEX": ".*"}
# Workers hand images to no one through Ray: the object store carries functions and reports only.
OBJECT_STORE_BYTES = 100 * 2**20


def _check_address(address: str) -> None:
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"RAY_ADDRESS={address} is a job server: use `ray job submit --working-dir . -- "
            "gear-dist train ...`, or unset RAY_ADDRESS to train on this machine"
        )
    if address.startswith("ray://"):
        raise ConfigError(
            f"RAY_ADDRESS={address}: Ray Client is not supported: give HOST:PORT of the head, "
            "or use `ray job submit`"
        )


def _is_connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


@contextlib.contextmanager
def ray_cluster(config: RunConfig, verbose: bool) -> Iterator[None]:
    """Connect to RAY_ADDRESS (set inside `ray job submit`), else start a cluster and end it.

    A process that is connected already keeps its cluster and its connection.

    A local cluster has no dashboard, a random access token, a temporary folder that is removed,
    and as many logical CPUs as its workers need, so that two workers run on one core too.

    Raises:
        ConfigError: RAY_ADDRESS cannot be used.
    """
    if _is_connected():
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "")
    _check_address(address)
    # Read when Ray is imported first, which is below.
    with (
        environment({} if verbose else SKIP_OUTPUT),
        _connected(address, verbose) if address else _started(config, verbose),
    ):
        yield


@contextlib.contextmanager
def _connected(address: str, verbose: bool) -> Iterator[None]:
    import ray

    try:
        ray.init(address=address, log_to_driver=verbose, logging_level=_level(verbose))
    except (ConnectionError, ValueError, RuntimeError) as error:
        line = str(error).strip().splitlines()[0]
        raise ConfigError(f"RAY_ADDRESS={address}: cannot connect: {line}") from None
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _started(config: RunConfig, verbose: bool) -> Iterator[None]:
    # Ray's sockets live here and their paths are limited to 107 characters: no deep folder.
    folder = tempfile.mkdtemp(prefix="gear-ray-")
    variables = {"RAY_USAGE_STATS_ENABLED": "0"}
    if "RAY_AUTH_MODE" not in os.environ:
        variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": ACCESS_TOKEN}
    with environment(variables):
        import ray

        # Where Ray was imported before, it has already read RAY_AUTH_MODE.
        getattr(ray._raylet, "Config").initialize("")  # noqa: B009 - in no type stub
        try:
            ray.init(
                address="local",
                num_cpus=max(os.cpu_count() or 1, config.run.workers, 2),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=verbose,
                logging_level=_level(verbose),
                _temp_dir=folder,
            )
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def _level(verbose: bool) -> int:
    return logging.INFO if verbose else logging.ERROR
