"""Temporarily set environment variables; existing ones win."""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the time of the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def loopback_collectives() -> dict[str, str]:
    """Keeps the connections of torch.distributed on loopback, for workers of one machine."""
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if sys.platform == "linux" else ()
    return {name: "lo" for name in names if name not in os.environ}
