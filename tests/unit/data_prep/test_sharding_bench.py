"""`python data_prep/bench/run.py` runs and writes its tables; its numbers are not judged here."""

import subprocess
import sys
from pathlib import Path

RUN = Path(__file__).parents[3] / "data_prep/bench/run.py"


def test_bench_writes_tables(tmp_path: Path) -> None:
    parts = ["copy", "verify", "mutations"]
    options = ["--images", "60", "--rounds", "1", "--mutations", "40", "--work", str(tmp_path)]
    command = [sys.executable, str(RUN), *parts, *options]
    run = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    assert "| webdataset ShardWriter |" in run.stdout
    assert "| gear-dist, header check |" in run.stdout
    assert "published objects: 40 of 40 changed bytes found" in run.stdout
    rows = [line.split("|") for line in run.stdout.splitlines()]
    crashed = [int(row[-2]) for row in rows if len(row) == 7 and row[-2].strip().isdigit()]
    assert crashed == [0] * 4, run.stdout
