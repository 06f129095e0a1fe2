"""README's section on quantizers: each one through every stage by the real commands, in short."""

import subprocess
import sys
from pathlib import Path

import pytest

from gear_dist.cli import main
from gear_dist.run_folder import RunFolder
from readme_commands import readme_commands, words_of

SHORT = [
    "stages.tokenizer.steps=2",
    "stages.joint.steps=2",
    "stages.generator.steps=2",
    "log.every_steps=1",
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the corpus, the shards and the teacher that README's commands make."""
    folder = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in readme_commands("Quantizers")[:-1]:
            assert main(words_of(command)) == 0, command
    return folder


@pytest.mark.parametrize("family", ["vq", "lfq", "ibq"])
def test_all_stages_then_samples_and_reconstructions(
    family: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    command = readme_commands("Quantizers")[-1].replace("tiny-lfq", f"tiny-{family}")
    words = [*words_of(command), *SHORT]
    assert main([*words, "--dry-run"]) == 0
    process = [sys.executable, "-m", "gear_dist", *words]
    found = subprocess.run(process, capture_output=True, text=True, timeout=200, check=False)
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
