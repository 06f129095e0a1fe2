"""The commands of docs/training.md on quantizers and teachers, in short; and the ablation that
collapses."""

import subprocess
import sys
from pathlib import Path

import pytest

from documented_commands import documented_commands, words_of
from gear_dist.cli.main import main
from gear_dist.runs.run_folder import RunFolder
from tiny_encoders import save_encoder

QUANTIZERS = documented_commands("training.md", "Quantizers")
SHORT = [
    "stages.tokenizer.steps=2",
    "stages.joint.steps=2",
    "stages.generator.steps=2",
    "log.every_steps=1",
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the corpus, the shards and the teacher of the page's commands."""
    folder = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in QUANTIZERS[:-1]:
            assert main(words_of(command)) == 0, command
    return folder


def train(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gear_dist", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def test_documented_teachers(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of the names on the hub stand in for them."""
    monkeypatch.chdir(workplace)
    save_encoder(Path("google/siglip2-base-patch16-256"), "siglip2")
    save_encoder(Path("facebook/dinov2-base"), "dinov2", blocks=12)
    for command in documented_commands("training.md", "Teachers"):
        words = [*words_of(command), *SHORT, "stages.tokenizer.steps=0"]
        assert main([*words, "--dry-run"]) == 0
        found = train(*words)
        assert found.returncode == 0, found.stderr
    assert {"align_soft", "align_hard"} <= RunFolder("runs/two").read_metrics()[0].keys()
    assert main(["export", "runs/two", "--out", "two-model"]) == 0
    start = ["run.name=three", "stages.init_from=two-model"]
    assert main([*words, *start, "--dry-run"]) == 0


@pytest.mark.parametrize("family", ["vq", "lfq", "ibq"])
def test_all_stages_then_samples_and_reconstructions(
    family: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    part = "" if family == "vq" else f" configs/tiny/{family}.yaml"
    command = QUANTIZERS[-1].replace(" configs/tiny/lfq.yaml", part)
    words = [*words_of(command), *SHORT]
    assert main([*words, "--dry-run"]) == 0
    found = train(*words)
    assert found.returncode == 0, found.stderr
    folder = RunFolder("runs/tiny" if family == "vq" else f"runs/tiny-{family}")
    records = folder.read_metrics()
    stages = ["tokenizer"] * 2 + ["joint"] * 2 + ["generator"] * 2
    assert [record["stage"] for record in records] == stages
    assert {"align_soft", "align_hard", "cross_entropy", "vq", "commit"} <= records[3].keys()
    # What a family has no loss for is 0: LFQ learns no codes, IBQ's vq loss holds its commitment.
    assert (records[0]["vq"] == 0) == (family == "lfq")
    assert (records[0]["commit"] == 0) == (family == "ibq")
    assert main(["sample", str(folder.path), "--count", "2", "--classes", "0,1"]) == 0
    assert main(["reconstruct", str(folder.path), "--count", "2"]) == 0


def test_runs_follow_one_another_in_one_process(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a notebook, at the ZeRO stages whose groups DeepSpeed keeps."""
    monkeypatch.chdir(workplace)
    words = [*words_of(QUANTIZERS[-1]), *SHORT, "run.launcher=local"]
    runs = [[*words, f"run.name=turn-{zero}", f"engine.zero_stage={zero}"] for zero in (1, 3, 0)]
    code = (
        "import sys; from gear_dist.cli.main import main\n"
        f"sys.exit(max(main(words) for words in {runs!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_straight_through_estimator_collapses(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collapse monitor, which the ablation turns off, ends it; what is saved is older."""
    monkeypatch.chdir(workplace)
    words = words_of(QUANTIZERS[-1].replace("tiny/lfq", "tiny/ste"))
    sizes = ["stages.tokenizer.steps=10", "stages.joint.steps=80", "stages.generator.steps=0"]
    often = ["log.every_steps=5", "log.usage_window_tokens=512", "checkpoint.every_steps=5"]
    found = train(*words, *sizes, *often, "collapse.patience=3")
    assert found.returncode == 4, found.stderr
    assert "the codebook has collapsed" in found.stderr
    assert "in 3 records in a row (collapse.patience)" in found.stderr
    folder = RunFolder("runs/tiny-ste")
    last, *before = [record["step"] for record in folder.read_metrics()][::-1]
    assert 10 < last < 90
    saved = max(int(path.parent.name.split("-")[1]) for path in folder.checkpoints.glob("*/man*"))
    assert saved == before[2], "three records in trouble, and a checkpoint at the one before"
    assert train(*words, *SHORT, "run.name=short").returncode == 0
