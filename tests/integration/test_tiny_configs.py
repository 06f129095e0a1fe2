"""configs/tiny-*.yaml: every quantizer through every stage by the real command, in short."""

import subprocess
import sys
from pathlib import Path

import pytest

from gear_dist.cli import main
from gear_dist.run_folder import RunFolder
from sample_shards import SampleShards

CONFIGS = Path(__file__).parents[2] / "configs"
SHORT = [
    "stages.tokenizer.steps=2",
    "stages.joint.steps=2",
    "stages.generator.steps=2",
    "log.every_steps=1",
]


@pytest.fixture(scope="module")
def teacher(sample_shards: SampleShards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    words = ["teacher", f"{sample_shards.file}/train", "--out", str(path), "--steps", "2"]
    assert main(words) == 0
    return path


@pytest.mark.parametrize("family", ["vq", "lfq", "ibq"])
def test_all_stages_then_samples_and_reconstructions(
    family: str, teacher: Path, sample_shards: SampleShards, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = [
        f"data.train={sample_shards.file}/train",
        f"data.validation={sample_shards.file}/validation",
        f"teacher.path={teacher}",
    ]
    config = str(CONFIGS / f"tiny-{family}.yaml")
    assert main(["train", config, *places, *SHORT, "--dry-run"]) == 0
    command = [sys.executable, "-m", "gear_dist", "train", config, *places, *SHORT]
    found = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert found.returncode == 0, found.stderr
    folder = RunFolder(f"runs/tiny-{family}")
    records = folder.read_metrics()
    stages = ["tokenizer"] * 2 + ["joint"] * 2 + ["generator"] * 2
    assert [record["stage"] for record in records] == stages
    assert {"align_soft", "align_hard", "cross_entropy", "vq", "commit"} <= records[3].keys()
    # What a family has no loss for is 0: LFQ learns no codes, IBQ's vq loss holds its commitment.
    assert (records[0]["vq"] == 0) == (family == "lfq")
    assert (records[0]["commit"] == 0) == (family == "ibq")
    assert main(["sample", str(folder.path), "--count", "2", "--classes", "0,1"]) == 0
    assert main(["reconstruct", str(folder.path), "--count", "2"]) == 0
