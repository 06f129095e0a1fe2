"""What README and docs/sampling.md show of sampling does what they say, on a tiny pair."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from documented_commands import ROOT, documented_commands
from gear_cluster.demo.object_store import StoreEndpoint
from gear_dist.cli.main import main
from image_files import encode
from tiny_pair import make_tiny_pair


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model in the place of the demonstration's run."""
    make_tiny_pair(tmp_path / "runs" / "demo")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", ["README.md", "docs/sampling.md"])
def test_python(page: str, folder: Path) -> None:
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder, env=environment)
    assert (folder / "first.png").stat().st_size > 100


def test_many_samples(folder: Path, object_store: StoreEndpoint) -> None:
    commands = documented_commands("sampling.md", "Many samples")
    readme = (ROOT / "README.md").read_text()
    [shown] = re.findall(r"^gear-dist (sample .*--num.*?) +#", readme, re.MULTILINE)
    assert commands[0].startswith(shown)
    for command in commands:
        words = (
            command.replace("50000", "20").replace("s3://results", "s3://gear-tests-docs").split()
        )
        assert main(words) == 0
    assert np.load(folder / "samples/samples.npz")["arr_0"].shape == (200, 16, 16, 3)


def test_pictures(folder: Path) -> None:
    for number in range(30):
        path = folder / ("held-out" if number < 10 else "training") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode(number, "PNG", (16, 16)))
    *others, neighbours = documented_commands("sampling.md", "Pictures for looking")
    for command in others:
        # The demonstration has 16 classes, the tiny pair 4.
        words = command.replace("0,5,10,15", "0,1,2,3").replace("0,5", "0,3").split()
        assert main([*words, "--out", "look.png"]) == 0
    assert main([*neighbours.split(), "--corpus", "training", "--held-out", "held-out"]) == 0
    assert (folder / "runs/demo/look-neighbours.sheet.json").stat().st_size > 100
