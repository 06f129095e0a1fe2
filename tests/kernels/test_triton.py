"""Runs triton_cases.py where Triton can run: interpreted on any machine, compiled on a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent


def run_cases(**environment: str) -> None:
    """Run the cases in a process of their own; fail with its output."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-o", "addopts=--import-mode=importlib"]
    done = subprocess.run(
        [*command, "--confcutdir", str(FOLDER), str(FOLDER / "triton_cases.py")],
        env=os.environ | environment,
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout


def test_kernels_interpreted() -> None:
    run_cases(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_on_the_gpu() -> None:
    run_cases(TRITON_INTERPRET="0")
