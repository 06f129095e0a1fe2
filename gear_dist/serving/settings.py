"""What a server is told: which model, how much at a time, how much may wait. No torch, no Ray."""

from typing import NamedTuple

from gear_dist.config.models import SamplingConfig

APPLICATION = "gear-dist"
"""Its name among a Ray cluster's applications, and its route's owner."""


class ServerSettings(NamedTuple):
    """Travels to the replicas."""

    model: str
    """A run folder or model folder, at the same path on every machine."""
    sampling: SamplingConfig
    """What a request does not say."""
    device: str = "auto"
    threads: int = 0
    """Of each replica on a CPU; 0: its share of the machine's cores."""
    batch: int = 8
    """Images that are generated at a time, at most."""
    queue: int = 256
    """Images that may wait for a replica; more are refused."""
    images_per_request: int = 16
    max_body_bytes: int = 32 << 20
    """Of a request: a picture, or its base64."""
