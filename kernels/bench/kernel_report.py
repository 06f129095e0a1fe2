"""What every kernel variant takes when compiled, as a table, for one or more versions of Triton.

    python kernels/bench/kernel_report.py FOLDER ... [--output FILE]

A folder is one that `pip install --target` made with a Triton of its own. No GPU is needed:
registers, stack, shared memory and instructions are read from the disassembly. These are
counts, and no times.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CAPABILITIES = (80, 90)
HEADER = """# Compiled kernels

Written by `make kernel-report`: counts of the compiled code, no measurements. D={columns}.
Stack: bytes of a thread outside its registers. Instructions: as they stand in the code, a loop's
body once. FFMA: float32 multiply-adds; matrix: HMMA or HGMMA, one of the latter doing the work of
many of the former; MUFU: exponentials and the like; spills: stores to and loads from the stack.
"""
COLUMNS = (
    "operation | kernel | registers | stack | shared memory | instructions | FFMA | matrix | MUFU "
    "| spills"
)


def collect() -> dict[str, Any]:
    """Rows for the Triton that this process imports."""
    import launches
    import triton

    rows = []
    for variant, run in launches.variants().items():
        with launches.recorded() as seen:
            run()
        for launch in seen:
            for capability in CAPABILITIES:
                found = launches.Resources.of(launch.compile(capability))
                rows.append([capability, variant, launch.name, *found])
    return {"triton": triton.__version__, "columns": launches.COLUMNS, "rows": rows}


def collect_with(folder: Path) -> dict[str, Any]:
    """`collect` in a process that finds the folder's Triton first."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, __file__, "--collect"]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def as_markdown(reports: list[dict[str, Any]]) -> str:
    """One table a version and compute capability."""
    lines = [HEADER.format(**reports[0])]
    for report in reports:
        for capability in CAPABILITIES:
            lines += [f"## Triton {report['triton']}, compute capability {capability / 10}", ""]
            lines += [f"| {COLUMNS} |", "|" + "---|" * (COLUMNS.count("|") + 1)]
            for place, variant, *rest in report["rows"]:
                if place == capability:
                    lines.append("| " + " | ".join(str(item) for item in (variant, *rest)) + " |")
            lines.append("")
    return "\n".join(lines)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="counts of compiled kernels")
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--collect", action="store_true", help="rows of this process, as JSON")
    default = Path(__file__).parent / "results" / "compiled.md"
    parser.add_argument("--output", type=Path, default=default)
    arguments = parser.parse_args()
    if arguments.collect:
        print(json.dumps(collect()))
        return
    reports = [collect_with(folder.resolve()) for folder in arguments.folders]
    arguments.output.write_text(as_markdown(reports))


if __name__ == "__main__":
    main()
