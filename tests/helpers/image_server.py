"""`gear-dist serve` as a process of its own."""

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

START_S = 120
END_S = 60


class ImageServer(NamedTuple):
    """A server that answers."""

    url: str
    process: subprocess.Popen[str]

    def replicas(self) -> list[psutil.Process]:
        """Processes with the model, started by this server."""
        return [
            p for p in psutil.Process(self.process.pid).children(recursive=True) if is_replica(p)
        ]


def is_replica(process: psutil.Process) -> bool:
    """Whether a process is one of Serve's replicas, by the name that Ray gives it."""
    try:
        return process.cmdline()[0].startswith("ray::ServeReplica")
    except (psutil.Error, IndexError):
        return False


@contextlib.contextmanager
def image_server(model: Path, *options: str, **environment: str) -> Iterator[ImageServer]:
    """Start it on a free port; asked to end with the block, it must, and leave no process."""
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-m", "gear_dist", "serve", str(model), "--port", "0", *options],
        stdout=subprocess.PIPE,
        text=True,
        env=kept | {"OMP_NUM_THREADS": "1"} | environment,
        start_new_session=True,
    )
    try:
        yield ImageServer(_first_line(process), process)
        family = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        assert process.wait(END_S) == 0
        _, alive = psutil.wait_procs(family, END_S)
        assert alive == []
    finally:
        process.kill()
        process.wait()


def _first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], START_S)
    line = process.stdout.readline().strip() if ready else ""
    assert line.startswith("http://"), f"it said {line!r} in the first {START_S} s"
    return line
