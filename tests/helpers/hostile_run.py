"""Runs hostile cases in a process of their own, and judges how each ended."""

import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

WORKER = Path(__file__).with_name("hostile_worker.py")
OURS = (0, 2, 3, 4, 5, 75)
"""Exit codes that docs name."""
HANG_S = 120.0
"""A case takes a fraction of a second: a machine that is busy is far from this."""
# They end with a code and a table of findings, and no message.
REPORTS = ("doctor", "store status")
LINKED = ("metrics.jsonl", "bad_samples.txt")
"""Files that are appended to: a link would change the original."""

Damage = Callable[[Path], str]
"""Changes a case's folder. Returns: what it has done, in words."""


class Case(NamedTuple):
    """A command with something wrong in its words or its files."""

    argv: tuple[str, ...]
    damage: Damage | None = None


class Failure(NamedTuple):
    """A case that did not end as it should."""

    argv: tuple[str, ...]
    damaged: str
    what: str
    """In a few words, the same for cases of one cause."""
    detail: str

    def __str__(self) -> str:
        words = " ".join(word if len(word) < 80 else f"{word[:60]}..." for word in self.argv)
        return f"gear-dist {words!r} [{self.damaged}]: {self.what}\n    {self.detail[-1500:]}"


class HostileRunner:
    """A worker process, started again when a case has ended or hung it."""

    def __init__(self, root: Path, tree: Path) -> None:
        """Args: root: scratch folder. tree: what each case finds in its folder."""
        self._root = root
        self._tree = tree
        self._count = 0
        self._process: subprocess.Popen[str] | None = None
        for name in ("tmp", "home"):
            (root / name).mkdir(parents=True, exist_ok=True)

    def run(self, case: Case) -> Failure | None:
        """Run a case in a fresh copy of the tree; None: it ended as it should."""
        answer = self.answer(case)
        problem = classify_end(case.argv, answer)
        return Failure(case.argv, answer["damaged"], *problem) if problem else None

    def answer(self, case: Case) -> dict[str, Any]:
        """How a case ended; see `classify_end`."""
        self._count += 1
        folder = self._root / f"case-{self._count:05d}"
        copy_tree(self._tree, folder)
        damaged = case.damage(folder) if case.damage else ""
        try:
            answer = self._ask({"argv": list(case.argv), "folder": str(folder)})
            return answer | {"damaged": damaged}
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if trains(case.argv):
                self.close()  # DeepSpeed keeps the process group of the first training

    def close(self) -> None:
        """End the worker."""
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            line = process.stdout.readline() if selector.select(HANG_S) else None
        if line:
            return json.loads(line)
        self.close()
        return {"lost": "hangs" if line is None else f"died with code {process.returncode}"}

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self._root / "worker.log").open("a"),
            text=True,
            env=hostile_environment(self._root),
        )


def trains(argv: tuple[str, ...]) -> bool:
    """Whether a command would train if nothing was wrong."""
    return argv[:1] == ("train",) and "--dry-run" not in argv


def hostile_environment(root: Path) -> dict[str, str]:
    """Without credentials, networks and caches of the user; nothing answers at the endpoint."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_", "GEAR_"))}
    return kept | {
        "HOME": str(root / "home"),
        "XDG_CACHE_HOME": str(root / "home"),
        "TMPDIR": str(root / "tmp"),
        "TORCHINDUCTOR_CACHE_DIR": str(root / "tmp"),  # importing torch makes it
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_EC2_METADATA_DISABLED": "true",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "80",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@contextmanager
def hostile_runner(tree: Path) -> Iterator[HostileRunner]:
    """A runner with a scratch folder of its own."""
    with tempfile.TemporaryDirectory(prefix="gear-hostile-") as root:
        runner = HostileRunner(Path(root), tree)
        try:
            yield runner
        finally:
            runner.close()


def copy_tree(tree: Path, folder: Path) -> None:
    """A copy by links: whoever replaces a file leaves the original."""

    def copy(source: str, target: str) -> None:
        (shutil.copy if Path(source).name in LINKED else os.link)(source, target)

    shutil.copytree(tree, folder, symlinks=True, copy_function=copy)


def classify_end(argv: tuple[str, ...], answer: dict[str, Any]) -> tuple[str, str] | None:
    """What is wrong with the end of a command, in a few words and in full; None: nothing."""
    if "lost" in answer:
        return answer["lost"], ""
    if answer["trace"]:
        return f"traceback {innermost(answer['trace'])}", answer["trace"]
    if answer["strays"]:
        return "writes outside its folders", ", ".join(answer["strays"][:3])
    if "Traceback (most recent" in answer["err"]:
        return "shows a traceback", answer["err"]
    code = answer["code"]
    if code not in OURS:
        return f"exit code {code}", answer["err"]
    if code == 0 or " ".join(argv).startswith(REPORTS):
        return None
    message = answer["err"].rpartition("gear-dist: ")[2].rstrip("\n")
    if "gear-dist: " not in answer["err"] or not message.strip():
        return "no message", answer["err"]
    return ("more than one line", answer["err"]) if "\n" in message else None


def innermost(trace: str) -> str:
    """The exception's name, and the last line of ours that it passed."""
    lines = trace.strip().splitlines()
    frames = [line.strip() for line in lines if line.strip().startswith("File ")]
    ours = [frame for frame in frames if "/gear_" in frame and "/tests/" not in frame]
    where = ours[-1].split("/gear_")[-1].replace('", line', "") if ours else "?"
    name = next((line for line in reversed(lines) if line[:1].isalpha()), "?")
    return f"{name.split(':')[0]} at gear_{where}"
