"""The kernels' tests on the device: all run, none is skipped."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from verdict import Verdict, run_step, table

ROOT = Path(__file__).resolve().parents[3]


def check(device: str, scratch: Path) -> Verdict:
    """On a CPU the dispatch alone: under the interpreter the kernels take minutes."""
    tests = ["-m", "gpu", "tests/kernels/test_triton.py"]
    if device == "cpu":
        tests = ["tests/kernels/test_dispatch.py"]
    report = scratch / "kernel-tests.xml"
    report.unlink(missing_ok=True)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs"]
    code = subprocess.run([*words, f"--junitxml={report}", *tests], cwd=ROOT).returncode
    return judge(code, report)


def judge(code: int, report: Path) -> Verdict:
    """What pytest's exit code and report say."""
    if not report.is_file():
        return Verdict((f"pytest ended with code {code} and no report",))
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for suite in ElementTree.parse(report).iter("testsuite"):
        for name in counts:
            counts[name] += int(suite.get(name, 0))
    problems = []
    if code != 0:
        problems.append(f"pytest ended with code {code}")
    if counts["tests"] == 0:
        problems.append("no test was run")
    problems += [
        f"{counts[name]} {name}" for name in ("failures", "errors", "skipped") if counts[name]
    ]
    return Verdict(tuple(problems), table(" | ".join(counts), [tuple(counts.values())]))


if __name__ == "__main__":
    run_step(check)
