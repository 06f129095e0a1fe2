"""Versions, devices and what `gear-dist doctor` finds."""

import json
import subprocess
import sys
from pathlib import Path

from verdict import Verdict, run_step, table

from gear_dist.runs.environment import gpu_driver, package_versions, torch_devices


def check(device: str, scratch: Path) -> Verdict:
    """Fails where doctor does, and where CUDA was asked for and is not there."""
    found = subprocess.run(
        [sys.executable, "-m", "gear_dist", "doctor", "--json", "--root", str(scratch)],
        capture_output=True,
        text=True,
    )
    checks = json.loads(found.stdout)["checks"]
    problems = [f"{c['name']}: {c['detail']}" for c in checks if c["status"] == "fail"]
    devices = torch_devices()
    if device == "cuda" and not devices:
        problems.append("torch sees no CUDA device")
    rows = [(name, version or "absent") for name, version in package_versions().items()]
    rows += [(f"GPU {i}", json.dumps(info)) for i, info in enumerate(devices)]
    rows.append(("driver", gpu_driver() or "none"))
    rows += [(f"doctor: {c['name']}", f"{c['status']}: {c['detail']}") for c in checks]
    return Verdict(tuple(problems), table("what | found", rows))


if __name__ == "__main__":
    run_step(check)
