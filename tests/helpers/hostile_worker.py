"""A process that runs `gear-dist` commands one after another for `hostile_run`.

It reads a case a line (JSON: argv, folder) on its standard input and answers each with a line: how
the command ended, what it wrote to its outputs, and each write outside the folders of the case.
What would start servers, clusters or days of work is stopped where that would begin.
"""

import io
import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

MEMORY_BYTES = 5 << 30
"""More than any command needs on the tiny run, and little enough that a huge number is told from
memory that is there."""

# Where work begins that a case does not do; the arguments are judged before that.
STOPS = (
    "gear_cluster.demo.object_store._start",  # a server that outlives the command
    "gear_cluster.demo.quickstart._use_store",  # the same, then minutes of training
    "gear_dist.reproduce.study._prepare",  # hours of training in other processes
    "gear_dist.distributed.task_pool._run_on_ray",  # a Ray cluster
)
ANSWERS: dict[str, Callable[..., Any]] = {
    # Three interpreters that import torch, ray and deepspeed: 20 seconds each time.
    "gear_dist.cli.doctor._run_python": lambda program: (
        '{"version": "1", "cuda": null, "devices": []}',
        "",
    ),
}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.truncate")


class Reached(BaseException):
    """A command has judged its arguments and would begin to work."""


class WriteWatch:
    """Notes what this process writes outside some folders, by Python's audit events."""

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] = ()
        self.strays: list[str] = []
        sys.addaudithook(self._see)

    def _see(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.allowed:
            return
        if event == "open" and isinstance(args[2], int) and args[2] & WRITES:
            self._check(args[0])
        elif event in CHANGES:
            for path in args[:2]:
                self._check(path)

    def _check(self, path: Any) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # an open descriptor, or a mode
        name = os.path.abspath(os.fsdecode(path))
        if not any(name == folder or name.startswith(f"{folder}/") for folder in self.allowed):
            self.strays.append(name)


def serve() -> None:
    """Answer cases until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    cases = os.fdopen(os.dup(0), encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    _prepare()
    watch = WriteWatch()
    environment = dict(os.environ)
    for line in cases:
        answer = _run(json.loads(line), watch)
        os.environ.clear()
        os.environ.update(environment)
        print(json.dumps(answer), file=answers, flush=True)


def _prepare() -> None:
    """Import what the commands need, stop what they may not start, bound the memory."""

    def stop(*_: object, **__: object) -> None:
        raise Reached

    for name in STOPS:
        _replace(name, stop)
    for name, answer in ANSWERS.items():
        _replace(name, answer)
    import torch
    from botocore.retries.standard import ExponentialBackoff

    # Nothing answers at the endpoint; to be told so four times takes no longer by waiting.
    ExponentialBackoff.delay_amount = lambda self, context: 0.0
    torch.set_num_threads(1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _replace(name: str, value: Callable[..., Any]) -> None:
    module, _, attribute = name.rpartition(".")
    room = import_module(module)
    assert callable(getattr(room, attribute)), f"{name} has moved: say where work begins now"
    setattr(room, attribute, value)


def _run(case: dict[str, Any], watch: WriteWatch) -> dict[str, Any]:
    from gear_dist.cli import main as cli

    folder = case["folder"]
    os.chdir(folder)
    tempfile_root = os.environ["TMPDIR"]
    outputs = [Path(folder).with_suffix(f".{name}") for name in ("stdout", "stderr")]
    saved = [os.dup(number) for number in (1, 2)]
    streams = sys.stdout, sys.stderr
    for number, path in zip((1, 2), outputs, strict=True):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    # As Python opens them: names that are no text fail on stdout and do not on stderr.
    sys.stdout = io.TextIOWrapper(open(os.dup(1), "wb"), "utf-8", "strict")  # noqa: SIM115
    sys.stderr = io.TextIOWrapper(open(os.dup(2), "wb"), "utf-8", "backslashreplace")  # noqa: SIM115
    watch.strays = []
    watch.allowed = (folder, tempfile_root, os.environ["HOME"], "/dev/shm")
    code, trace = None, ""
    try:
        code = cli.main(case["argv"])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except Reached:
        code = 0
    except BaseException:
        trace = traceback.format_exc()
    watch.allowed = ()
    for stream in (sys.stdout, sys.stderr):
        stream.close()
    sys.stdout, sys.stderr = streams
    for number, descriptor in zip((1, 2), saved, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(tempfile_root)
    texts = [path.read_text("utf-8", "replace") for path in outputs]
    for path in outputs:
        path.unlink()
    return {"code": code, "trace": trace, "out": texts[0], "err": texts[1], "strays": watch.strays}


if __name__ == "__main__":
    serve()
