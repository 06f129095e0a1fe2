"""Every command of docs/training.md on stages and arms, in order, each from the one before.

The published recipes, made small by configs/tiny.yaml and two steps.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from documented_commands import ROOT, documented_commands, words_of
from gear_dist.cli.main import main
from gear_dist.runs.run_folder import RunFolder
from sample_shards import SampleShards

TRAINED = {"warm-up": "tokenizer", "joint": "joint"}
"""Stage of a recipe, by its name; the others train the generator."""
TAKEN = {
    "warm-up": "",
    "joint": "tokenizer, discriminator",
    "generator": "tokenizer, discriminator, generator, projectors",
    "llamagen-repa": "tokenizer",
    "llamagen": "tokenizer",
}
"""What each recipe takes over from the run that it starts from."""
WITHOUT_TEACHER = ("warm-up", "llamagen")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample_shards: SampleShards) -> Path:
    """A working folder with shards and a teacher for them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").symlink_to(sample_shards.file.removeprefix("file://"))
    command = ["teacher", "shards/train", "--out", "teacher.safetensors", "--steps", "2"]
    assert main(command) == 0
    return tmp_path


def small(command: str) -> tuple[str, list[str]]:
    """The recipe's name, and the command's words with tiny sizes and two steps."""
    words = words_of(command)
    name = Path(words[1]).stem
    stage = TRAINED.get(name, "generator")
    steps = [f"stages.{n}.steps={2 * (n == stage)}" for n in ("tokenizer", "joint", "generator")]
    tiny = str(ROOT / "configs" / "tiny.yaml")
    sizes = [f"run.name={name}", "log.every_steps=1", *steps]
    if name not in WITHOUT_TEACHER:
        sizes.append("teacher.path=teacher.safetensors")
    if name == "generator":
        sizes.append("optimizer.generator_lr=0")  # so that what it took over can be seen
    return name, [*words[:2], tiny, *words[2:], *sizes]


def same(run: str, other: str, network: str) -> bool:
    """Whether two runs have published the same network, bit for bit."""
    ours, theirs = (load_file(f"runs/{r}/weights/{network}.safetensors") for r in (run, other))
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_every_documented_command_runs(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    *trainings, plan = documented_commands("training.md", "Stages and arms")
    assert main(words_of(plan)) == 0
    assert "Stage joint, 400,000 steps" in capsys.readouterr().out
    for command in trainings:
        name, words = small(command)
        assert main([*words, "--dry-run"]) == 0, (command, capsys.readouterr().err)
        taken = [s for s in capsys.readouterr().out.splitlines() if s.startswith("starts from")]
        assert [line.split(": ")[1] for line in taken] == ([TAKEN[name]] if TAKEN[name] else [])
        process = [sys.executable, "-m", "gear_dist", *words]
        found = subprocess.run(process, capture_output=True, text=True, timeout=200, check=False)
        assert found.returncode == 0, (command, found.stderr)
        records = RunFolder(f"runs/{name}").read_metrics()
        assert [record["stage"] for record in records] == [TRAINED.get(name, "generator")] * 2
        assert ("align_hard" in records[0]) == (name not in WITHOUT_TEACHER)
    for run, before in (
        ("generator", "joint"),
        ("llamagen-repa", "warm-up"),
        ("llamagen", "warm-up"),
    ):
        assert same(run, before, "tokenizer"), f"{run} leaves it as it is"
    assert not same("joint", "warm-up", "tokenizer")
    for network in ("generator", "projectors"):
        assert same("generator", "joint", network), network
        assert not same("llamagen-repa", "joint", network), network
