"""The Ray cluster that a command works on: the one of RAY_ADDRESS, else a private one."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator

from gear_dist.distributed.private_ray import private_ray
from gear_dist.errors import ConfigError
from gear_dist.formatting import first_line
from gear_dist.redaction import redact_text

_ANSWER_S = 20.0
"""That a cluster's head may take to accept a connection."""


@contextlib.contextmanager
def command_cluster(num_cpus: int) -> Iterator[bool]:
    """Connect to it for the time of the block; True where it is private, and ends with the block.

    Args:
        num_cpus: of a private one.

    Raises:
        ConfigError: RAY_ADDRESS cannot be used.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    check_ray_address(address)
    with connected_ray(address) if address else private_ray(num_cpus):
        yield not address


def check_ray_address(address: str) -> None:
    """Refuse addresses that are no cluster's head.

    Raises:
        ConfigError: it is a job server's, or Ray Client's.
    """
    shown = redact_text(address)
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"RAY_ADDRESS={shown} is a job server: use `ray job submit --working-dir . -- "
            "gear-dist ...`, or unset RAY_ADDRESS to work on this machine"
        )
    if address.startswith("ray://"):
        raise ConfigError(
            f"RAY_ADDRESS={shown}: Ray Client is not supported: give HOST:PORT of the head, "
            "or use `ray job submit`"
        )


def _check_answers(address: str) -> None:
    """Ray itself tries for minutes, without a word of the setting."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"RAY_ADDRESS={redact_text(address)}: nobody answers there: {first_line(error)}: start "
            "the cluster, name its head, or unset RAY_ADDRESS to work on this machine"
        ) from None


@contextlib.contextmanager
def connected_ray(address: str, *, verbose: bool = False) -> Iterator[None]:
    """A connection to a cluster that is there.

    Args:
        address: HOST:PORT of its head.
        verbose: show Ray's and the workers' output.

    Raises:
        ConfigError: it cannot be reached.
    """
    import ray

    level = logging.INFO if verbose else logging.ERROR
    _check_answers(address)
    try:
        ray.init(address=address, log_to_driver=verbose, logging_level=level)
    except (ConnectionError, ValueError, RuntimeError) as error:
        line = first_line(error)
        raise ConfigError(f"RAY_ADDRESS={redact_text(address)}: cannot connect: {line}") from None
    try:
        yield
    finally:
        ray.shutdown()
