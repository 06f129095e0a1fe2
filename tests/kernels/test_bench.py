"""The benchmark runs and writes its table."""

import os
import subprocess
import sys
from pathlib import Path

import kernel_report

RUN = Path(__file__).parents[2] / "kernels" / "bench" / "run.py"


def test_bench_writes_a_table(tmp_path: Path) -> None:
    output = tmp_path / "table.md"
    command = [sys.executable, str(RUN), "--device", "cpu", "--shapes", "64,128,8,16"]
    command += ["--contenders", "torch", "--repeats", "2", "--output", str(output)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    lines = output.read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "N=64" in line]
    assert [row[:3] for row in rows] == [
        ["joint", "N=64 K=128 C=8 D=16", "torch"],
        ["joint", "N=64 K=128 C=8 D=16", "two products of 2NKD"],
    ]
    assert all(float(row[3].split()[0]) > 0 for row in rows)
    # Without the reference there is nothing to compare with.
    assert rows[0][4] == "-"
    assert any("torch" in line and "Python" in line for line in lines[:4])


def test_the_report_of_compiled_kernels_names_each_version_and_device() -> None:
    rows = [[80, "lfq, 14 bits", "readout_kernel", 255, 8, 53504, 2073, 320, 64, 32, 6]]
    rows.append([90, *rows[0][1:]])
    reports = [{"triton": version, "columns": 1280, "rows": rows} for version in ("3.7.1", "3.9.0")]
    lines = kernel_report.as_markdown(reports).splitlines()
    titles = [line for line in lines if line.startswith("## ")]
    assert titles == [
        f"## Triton {version}, compute capability {place}"
        for version in ("3.7.1", "3.9.0")
        for place in ("8.0", "9.0")
    ]
    row = "| lfq, 14 bits | readout_kernel | 255 | 8 | 53504 | 2073 | 320 | 64 | 32 | 6 |"
    assert lines.count(row) == 4
