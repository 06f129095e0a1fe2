"""The demonstration, trained from nothing in a folder of this check's."""

import shutil
import subprocess
import sys
from pathlib import Path

from verdict import Verdict, run_step, table

from gear_dist.runs.run_folder import RunFolder

NAME = "demonstration"


def check(device: str, scratch: Path) -> Verdict:
    """Fails where it ends early, or trains on another device."""
    root = scratch / "runs"
    shutil.rmtree(root / NAME, ignore_errors=True)
    words = [sys.executable, "-m", "gear_dist", "quickstart", "--run-name", NAME]
    words += [f"run.device={device}", f"run.root={root}"]
    if device == "cpu":
        words += [f"stages.{name}.steps=2" for name in ("tokenizer", "joint", "generator")]
    code = subprocess.run(words).returncode
    if code != 0:
        return Verdict((f"quickstart ended with code {code}",))
    folder = RunFolder.open(root / NAME)
    status, trained_on = folder.read_status(), folder.read_environment().get("device", "")
    problems = []
    if status is None or status.state != "done":
        problems.append(f"the run is not done: {status}")
    if not str(trained_on).startswith(device):
        problems.append(f"trained on {trained_on or 'an unknown device'}")
    scores = folder.read_evaluation() or {}
    guided, rebuilt = scores.get("guided") or {}, scores.get("reconstruction") or {}
    rows: list[tuple[object, ...]] = [
        ("accuracy, guided, median", guided.get("accuracy", {}).get("median", "not measured")),
        ("PSNR of reconstructions, dB", rebuilt.get("psnr_db", "not measured")),
        ("trained on", trained_on),
    ]
    return Verdict(tuple(problems), table("what | found", rows))


if __name__ == "__main__":
    run_step(check)
