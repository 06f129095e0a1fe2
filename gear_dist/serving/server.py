"""Starts the server on a Ray cluster, and ends it."""

import contextlib
import logging
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from gear_dist.distributed.ray_cluster import command_cluster
from gear_dist.errors import ConfigError, StorageError, UserError
from gear_dist.inference.model_folder import ModelFolder
from gear_dist.inference.weights import check_fit, read_weights
from gear_dist.serving.settings import APPLICATION, ServerSettings

_NETWORKS = ("tokenizer", "generator")
_DEPLOY_FAILED = "The deployment failed to start"


def check_model(model: ModelFolder) -> None:
    """Tell of weights that cannot be served before anything starts.

    Raises:
        DataError: there is no tokenizer, or weights do not fit their configuration.
    """
    model.require("tokenizer")
    for name in _NETWORKS:
        if name in model.weights:
            check_fit(name, read_weights(model.weights[name]), model.config, str(model.path))


def choose_port(host: str, port: int) -> int:
    """The port, or a free one for 0.

    Raises:
        ConfigError: it is taken, or the host is none of this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            return listener.getsockname()[1]
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"--host {host} --port {port}: cannot listen there: {reason}: name another, or 0 for "
            "any free port"
        ) from None


@contextlib.contextmanager
def hold_port(port: int) -> Iterator[None]:
    """Keep other servers of ours from a port for the time of the block.

    Ray binds it late, and in a way that lets several listen there.

    Raises:
        ConfigError: another one has it.
    """
    path = Path(tempfile.gettempdir()) / f"gear-dist-serve-{port}.lock"
    lock = filelock.FileLock(path, blocking=False, mode=0o666)
    try:
        with lock:
            yield
    except filelock.Timeout:
        raise ConfigError(
            f"--port {port}: another `gear-dist serve` has it: name another, or 0 for any free port"
        ) from None
    except PermissionError:
        raise ConfigError(
            f"--port {port}: {path} belongs to another user: name another port"
        ) from None


def run_server(settings: ServerSettings, *, host: str, port: int, replicas: int, gpus: int) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        settings: of each replica.
        host: address to listen on.
        port: of it, not 0.
        replicas: processes.
        gpus: 1 where each has a GPU, else 0.

    Raises:
        ConfigError: RAY_ADDRESS cannot be reached. UserError: a replica does not start.
    """
    with (
        hold_port(port),
        command_cluster(replicas) as private,
        _serving(host, port, private) as serve,
        _signals() as stopped,
    ):
        from gear_dist.serving.deployment import application

        try:
            serve.run(
                application(settings, replicas=replicas, gpus=gpus),
                name=APPLICATION,
                route_prefix="/",
            )
        except RuntimeError as error:
            raise _why(serve, error) from None
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{port}", flush=True)
        print("Ctrl-C ends it", file=sys.stderr)
        stopped.wait()
        print("ending, after the requests that run", file=sys.stderr)


@contextlib.contextmanager
def _serving(host: str, port: int, private: bool) -> Iterator[Any]:
    """Ray Serve, without the application afterwards, and ended where it was not there before."""
    from ray import serve

    # It tells every start, and each client that leaves, at length.
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    running = bool(serve.status().proxies)
    if running:
        print("Ray Serve runs already: its address and port stay as they are", file=sys.stderr)
    else:
        serve.start(http_options={"host": host, "port": port})
    try:
        yield serve
    finally:
        serve.delete(APPLICATION)
        if not running and not private:  # a private cluster ends by itself
            serve.shutdown()


@contextlib.contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set."""
    stopped = threading.Event()
    names = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(name, lambda *_: stopped.set()) for name in names]
    try:
        yield stopped
    finally:
        for name, handler in zip(names, before, strict=True):
            signal.signal(name, handler)


def _why(serve: Any, error: Exception) -> UserError:
    """The last line of what Serve knows of a replica that does not start."""
    found = serve.status().applications.get(APPLICATION)
    deployments = found.deployments.values() if found else ()
    text = "\n".join([str(error), *(each.message for each in deployments)])
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.split(":")[0].endswith(("Error", "Exception"))]
    return StorageError(f"a replica does not start: {(errors or lines or [''])[-1]}")
