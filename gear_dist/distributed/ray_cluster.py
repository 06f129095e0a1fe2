"""The Ray cluster that a command works on: the one of RAY_ADDRESS, else a private one."""

import contextlib
import logging
import os
from collections.abc import Iterator

from gear_dist.distributed.private_ray import private_ray
from gear_dist.errors import ConfigError
from gear_dist.redaction import redact_text


@contextlib.contextmanager
def ray_cluster(num_cpus: int) -> Iterator[bool]:
    """Connect to it for the time of the block; True where it is private, and ends with the block.

    Args:
        num_cpus: of a private one.

    Raises:
        ConfigError: RAY_ADDRESS cannot be reached.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        with private_ray(num_cpus):
            yield True
        return
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        line = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"RAY_ADDRESS={redact_text(address)}: cannot connect: {line}") from None
    try:
        yield False
    finally:
        ray.shutdown()
