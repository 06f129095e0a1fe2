"""Checks everything that only a GPU can tell, step by step: `make gpu-check`.

Each step is a process with a time limit, and its verdict and table are kept at once: a check that
is cut off goes on where it was, and what passed with these sources on this device is not run again.
Results: kernels/bench/results/gpu-check.md. With `--device cpu` the check itself is tried, with
less of everything.
"""

import argparse
import contextlib
import ctypes
import datetime
import hashlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import verdict as verdicts
from steps import ROOT, STEPS, Place, Step

FOLDERS = [ROOT, ROOT / "kernels", ROOT / "cluster", ROOT / "data_prep"]

SOURCES = ("gear_dist", "kernels", "cluster", "data_prep", "configs", "tests/kernels")
SOURCE_SUFFIXES = (".py", ".c", ".yaml")

LOG_END = 15
"""Lines of a failed step's log that are shown."""


def main() -> int:
    """Exit code 1 if a step failed."""
    args = _parse()
    if args.list:
        print(
            "\n".join(f"{step.name:<14} {step.about} (at most {step.limit_s} s)" for step in STEPS)
        )
        return 0
    scratch = (args.scratch or ROOT / ".gear" / f"gpu-check-{args.device}").resolve()
    default = ROOT / "kernels/bench/results/gpu-check.md"
    output = args.output or (default if args.device == "cuda" else scratch / "gpu-check.md")
    _check_writable(scratch, output)
    state = _State(scratch / "state.json", identify(args.device))
    for i, step in enumerate(STEPS):
        # What all need is run before a step that was asked for, too.
        if args.steps and step.name not in args.steps and not step.needed:
            continue
        if state.passed(step.name) and step.name not in args.steps:
            print(f"[{i + 1}/{len(STEPS)}] {step.name}: passed before", flush=True)
            continue
        print(f"[{i + 1}/{len(STEPS)}] {step.name}: {step.about} ...", flush=True)
        state.keep(step.name, _run(step, args.device, scratch))
        _show(step, state.found[step.name], scratch)
        if step.needed and not state.passed(step.name):
            print(
                f"ended here: without {step.name} the other steps would tell nothing; nothing is "
                f"written to {output}"
            )
            return 1
        output.write_text(_render(state, args.device))
    output.write_text(_render(state, args.device))
    failed = [step.name for step in STEPS if not state.passed(step.name)]
    print(f"written: {output}; " + (f"not passed: {', '.join(failed)}" if failed else "all passed"))
    return 1 if failed else 0


def _end(number: int, frame: object) -> None:
    """A batch system's or a terminal's way to end this: the step goes as well."""
    raise SystemExit(128 + number)


def _end_with_parent() -> None:
    """In a step's process: it ends when this one does, however that does (Linux)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _check_writable(scratch: Path, output: Path) -> None:
    """Before any step is run for nothing."""
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        for folder in (scratch, output.parent):
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        raise SystemExit(f"--scratch {scratch}, --output {output}: {error}") from None


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "steps",
        nargs="*",
        metavar="STEP",
        help="run these, also where they passed (default: all that did not; see --list)",
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--output", type=Path, help="default: kernels/bench/results/gpu-check.md")
    parser.add_argument("--scratch", type=Path, help="default: .gear/gpu-check-DEVICE")
    parser.add_argument("--list", action="store_true", help="name the steps, run none")
    args = parser.parse_args()
    names = [step.name for step in STEPS]
    for name in args.steps:
        if name not in names:
            parser.error(f"no step {name}: use some of {', '.join(names)}")
    return args


class _State:
    """What steps found with one identity, in a file that outlives this process."""

    def __init__(self, path: Path, identity: dict[str, str]) -> None:
        self._path = path
        self._identity = identity
        self.found: dict[str, dict[str, Any]] = {}
        try:
            kept = json.loads(path.read_text())
            if kept["identity"] == identity:
                self.found = kept["steps"]
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError):
            print(f"{path} is damaged: every step is run anew")

    def passed(self, name: str) -> bool:
        return name in self.found and not self.found[name]["problems"]

    def keep(self, name: str, found: dict[str, Any]) -> None:
        self.found[name] = found
        text = json.dumps({"identity": self._identity, "steps": self.found}, indent=1)
        partial = self._path.with_suffix(".partial")
        partial.write_text(text)
        partial.replace(self._path)


def _run(step: Step, device: str, scratch: Path) -> dict[str, Any]:
    """Run a step's process. Returns: problems, lines, seconds."""
    place = Place(device, scratch, scratch / f"{step.name}.json")
    table = place.result.with_suffix(".md")
    for old in (place.result, table):
        old.unlink(missing_ok=True)
    started = time.monotonic()
    with (scratch / f"{step.name}.log").open("wb") as log:
        process = subprocess.Popen(
            step.command(place),
            cwd=ROOT,
            env=_environment(device),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        try:
            code = process.wait(step.limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            # Also where this process is interrupted: a step that goes on would disturb the next.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found = verdicts.read(place.result) or verdicts.Verdict()
    problems, lines = list(found.problems), list(found.lines)
    if code is None:
        problems.append(f"not done within {step.limit_s} s")
    elif code != 0 and not problems:
        problems.append(f"ended with code {code}")
    if not lines and table.is_file():
        lines = table.read_text().splitlines()[1:]
    return {"problems": problems, "lines": lines, "seconds": round(time.monotonic() - started)}


def _environment(device: str) -> dict[str, str]:
    variables = dict(os.environ)
    path = [str(folder) for folder in FOLDERS]
    path += [variables["PYTHONPATH"]] if variables.get("PYTHONPATH") else []
    variables["PYTHONPATH"] = os.pathsep.join(path)
    variables.setdefault("HF_HUB_OFFLINE", "1")
    variables.setdefault("WANDB_MODE", "offline")
    if device == "cpu":
        variables |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return variables


def _show(step: Step, found: dict[str, Any], scratch: Path) -> None:
    if not found["problems"]:
        print(f"      passed in {found['seconds']} s", flush=True)
        return
    print(f"      FAILED in {found['seconds']} s: " + "; ".join(found["problems"]), flush=True)
    log = scratch / f"{step.name}.log"
    for line in log.read_text(errors="replace").splitlines()[-LOG_END:]:
        print(f"      | {line}")


def _render(state: _State, device: str) -> str:
    """The page: verdicts first, then each step's table."""
    rows = []
    for step in STEPS:
        found = state.found.get(step.name)
        verdict = "not run" if found is None else "passed" if not found["problems"] else "FAILED"
        detail = "; ".join(found["problems"]) if found else ""
        rows.append((step.name, verdict, found["seconds"] if found else "", detail))
    lines = [
        "# What a GPU tells" if device == "cuda" else "# The check of a GPU, tried on a CPU",
        "",
        f"{datetime.date.today().isoformat()}, revision {_revision()}, by `make gpu-check`.",
        "",
        *verdicts.table("step | verdict | seconds | problems", rows),
    ]
    for step in STEPS:
        if (found := state.found.get(step.name)) and found["lines"]:
            lines += ["", f"## {step.name}: {step.about}", "", *found["lines"]]
    return "\n".join(lines) + "\n"


def identify(device: str) -> dict[str, str]:
    """What a verdict holds for: sources, torch, and the device with its driver."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SOURCE_SUFFIXES and path.is_file():
                digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return {
        "device": device,
        "sources": digest.hexdigest(),
        "torch": importlib.metadata.version("torch"),
        "gpus": _gpus() if device == "cuda" else "",
    }


def _gpus() -> str:
    """Names and driver, as the driver's tool says them."""
    words = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=60).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _revision() -> str:
    """Of the checkout; a copy without its history has none."""
    words = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    try:
        found = subprocess.run(words, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _end)
    sys.exit(main())
