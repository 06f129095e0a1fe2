"""Ray nodes as processes of this machine: a head that runs drivers, nodes that run workers."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

START_SECONDS = 90.0
RAY = str(Path(sys.executable).parent / "ray")
OBJECT_STORE = f"--object-store-memory={100 * 2**20}"


class Nodes(NamedTuple):
    """A cluster: a head without CPUs, and whatever `start_node` adds."""

    address: str
    environment: dict[str, str]
    """For drivers and nodes; holds RAY_ADDRESS."""
    folder: Path
    """Of what the nodes say."""
    processes: ExitStack

    def start_node(self, cpus: int = 1) -> subprocess.Popen[bytes]:
        """A node for workers, in a process group of its own; SIGTERM to the process drains it."""
        words = [f"--address={self.address}", f"--num-cpus={cpus}"]
        # Any free port: the nodes of one machine would assign the same ones of Ray's range.
        words += ["--min-worker-port=0", "--max-worker-port=0"]
        environment = {k: v for k, v in self.environment.items() if k != "RAY_ADDRESS"}
        return _start(words, environment, self.folder, self.processes)


def free_ports(count: int) -> list[int]:
    """TCP ports of the loopback that nobody listens on now."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@contextmanager
def ray_nodes(environment: dict[str, str]) -> Iterator[Nodes]:
    """A head without CPUs; all that was started ends with the block."""
    environment = environment | {"RAY_AUTH_MODE": "disabled"}
    port, client = free_ports(2)
    with ExitStack() as processes:
        # Ray's sockets need a short path.
        folder = processes.enter_context(
            tempfile.TemporaryDirectory(prefix="gh-", ignore_cleanup_errors=True)
        )
        words = ["--head", f"--port={port}", "--num-cpus=0", f"--temp-dir={folder}"]
        words += ["--include-dashboard=false", f"--ray-client-server-port={client}"]
        _start(words, environment, Path(folder), processes)
        address = f"127.0.0.1:{port}"
        yield Nodes(address, environment | {"RAY_ADDRESS": address}, Path(folder), processes)


def _start(
    words: list[str], environment: dict[str, str], folder: Path, processes: ExitStack
) -> subprocess.Popen[bytes]:
    """Start a node and wait until it is part of the cluster."""
    log = folder / f"node-{len(list(folder.glob('node-*')))}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [RAY, "start", "--block", OBJECT_STORE, *words],
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
    processes.callback(kill_group, process)
    deadline = time.monotonic() + START_SECONDS
    while b"Ray runtime started." not in log.read_bytes():
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"a node did not start:\n{log.read_text()}")
        time.sleep(0.1)
    return process


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a node without a word, as a machine that loses power does."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
