"""Contenders side by side: each its own process, in turns; the median of the rounds counts."""

import json
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Contender(NamedTuple):
    """Something that is measured."""

    name: str
    command: Callable[[Path], list[str]]
    """The command, given an empty folder to write to."""


class Result(NamedTuple):
    """Of one contender."""

    name: str
    work: tuple[float, ...]
    """Seconds of each round that the contender itself tells, imports not counted."""
    whole: tuple[float, ...]
    """Seconds of each round from the command's start to its end."""
    peak_bytes: int
    """Largest resident memory of the process and its children together."""

    @property
    def work_s(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.work)

    @property
    def whole_s(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.whole)


def run_in_turns(
    contenders: list[Contender], rounds: int, folder: Path, environment: dict[str, str]
) -> list[Result]:
    """Run all contenders in turns, after one round that warms the page cache."""
    work: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    whole: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    peaks = dict.fromkeys(work, 0)
    for number in range(rounds + 1):
        for contender in contenders:
            target = folder / "out"
            remove(target)
            # What the one before has left to write would slow this one down.
            os.sync()
            told, took, peak = run(contender.command(target), environment)
            if number:
                work[contender.name].append(told)
                whole[contender.name].append(took)
            peaks[contender.name] = max(peaks[contender.name], peak)
    remove(folder / "out")
    return [Result(name, tuple(work[name]), tuple(whole[name]), peaks[name]) for name in work]


def run(command: list[str], environment: dict[str, str]) -> tuple[float, float, int]:
    """Seconds that the command tells as JSON, from start to end, and its tree's peak memory."""
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    peak = [0]
    watcher = threading.Thread(target=_watch, args=(process.pid, peak), daemon=True)
    watcher.start()
    output, errors = process.communicate()
    took = time.monotonic() - start
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}\n{errors}")
    told = json.loads(output[output.rindex('{"seconds') :]) if '{"seconds' in output else None
    return (told or json.loads(output))["seconds"], took, peak[0]


def remove(path: Path) -> None:
    """Remove a folder tree, if it is there."""
    subprocess.run(["rm", "-rf", str(path)], check=True)


def _watch(root: int, peak: list[int]) -> None:
    while Path(f"/proc/{root}").exists() and _state(root) != "Z":
        peak[0] = max(peak[0], sum(map(_resident, _tree(root))))
        time.sleep(0.05)


def _tree(root: int) -> list[int]:
    found = [root]
    for pid in found:
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return found


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
