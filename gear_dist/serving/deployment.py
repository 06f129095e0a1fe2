"""The server on Ray Serve: replicas of the pair behind one address.

For `serve run` and Kubernetes' RayService: import path `gear_dist.serving.deployment:build`,
arguments as the fields of `ReplicaArguments`.
"""

import dataclasses
import os
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application

from gear_dist.inference.model_folder import open_model
from gear_dist.serving.settings import ServerSettings

_ONGOING = 100_000
"""Requests that Serve lets through to a replica, which has a queue and answers 429 itself: Serve's
own limit answers 503 without a Retry-After."""
_DRAIN_S = 60.0
"""Given to requests that run when the server is stopped."""


@serve.ingress()
class Replica:
    """One pair in one process."""

    def __init__(self, settings: ServerSettings) -> None:
        from gear_dist.source_tree import use_source_tree

        use_source_tree()
        from gear_dist.serving.service import Service

        self._service = Service(settings)

    def __serve_build_asgi_app__(self) -> FastAPI:
        from gear_dist.serving.routes import build_app

        return build_app(self._service)


def application(settings: ServerSettings, *, replicas: int, gpus: int) -> Application:
    """What `serve.run` takes.

    Args:
        settings: of each replica.
        replicas: processes, each with the whole pair.
        gpus: 1 where each has a GPU, else 0.
    """
    deployment = serve.deployment(
        name="pair",
        num_replicas=replicas,
        max_ongoing_requests=_ONGOING,
        graceful_shutdown_timeout_s=_DRAIN_S,
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
    )(Replica)
    return deployment.bind(settings)


class ReplicaArguments(BaseModel):
    """`args` of a Serve configuration file."""

    model_config = ConfigDict(extra="forbid")

    model: str
    device: str = "auto"
    replicas: int = 1
    gpus: int = 0
    threads: int = 0
    batch: int = 8
    queue: int = 256
    sampling: dict[str, Any] = {}


def build(arguments: ReplicaArguments) -> Application:
    """For `serve run` and RayService."""
    given = arguments.model_dump(exclude={"replicas", "gpus", "sampling", "model"})
    sampling = dataclasses.replace(
        open_model(arguments.model).config.sampling, **arguments.sampling
    )
    settings = ServerSettings(os.path.abspath(arguments.model), sampling, **given)
    return application(settings, replicas=arguments.replicas, gpus=arguments.gpus)
