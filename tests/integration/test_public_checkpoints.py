"""Every command of docs/public-checkpoints.md, in order, on small files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import public_files as files
from documented_commands import ROOT, documented_commands, words_of
from gear_dist.cli.main import main
from gear_dist.config.loading import load_config
from gear_dist.interop.import_public import import_checkpoints
from gear_dist.models.generator import build_generator
from gear_dist.models.generator.aligned import build_projector
from gear_dist.runs.run_folder import RunFolder
from sample_shards import SampleShards

SMALL_RUN = [
    "run.launcher=local",
    "run.device=cpu",
    "data.image_size=32",
    "losses.lpips_weight=0",
    "losses.gradient_weight=1",
    "alignment.soft_weight=0",
    "alignment.hard_weight=0",
    "generator.width=32",
    "generator.num_layers=2",
    "generator.num_heads=2",
    "generator.num_classes=16",
    "generator.tap_layer=1",
    "engine.global_batch=4",
    "log.every_steps=1",
]
# What makes a command of that page small, by its beginning.
EXTRA = {
    "train": SMALL_RUN,
    "train configs/stage/joint.yaml": ["stages.joint.steps=2"],
    "train configs/stage/generator": ["stages.generator.steps=2"],
    "import vq_ds16_c2i.pt --": ["--set", "data.image_size=32"],
    "import 0400000.pt": ["--set", "data.image_size=32"],
    "shard": ["--workers", "1"],
}


def gear_dist(*words: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: DeepSpeed trains once a process."""
    command = [sys.executable, "-m", "gear_dist", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def small(command: str) -> list[str]:
    words = words_of(command)
    for start, extra in EXTRA.items():
        if command.startswith(start):
            words += extra
    if "stages.init_from=gear-stage1" in words:  # which brings its generator's sizes
        words = [word for word in words if not word.startswith("generator.")]
    return words


@pytest.fixture
def workplace(tmp_path, monkeypatch, sample_tree: Path) -> Path:
    """A working folder with small public files under their public names, and photos."""
    monkeypatch.chdir(tmp_path)
    vq = files.reference_state("tokenizer_vq")
    files.llamagen_tokenizer_file(tmp_path / "vq_ds16_c2i.pt", vq)
    words = ["tokenizer.codebook_size=64", "generator.width=64", "generator.num_layers=2"]
    config = load_config(None, [*words, "generator.num_heads=1", "generator.tap_layer=1"])
    grid = 16
    generator = build_generator(config).state_dict()
    torch.nn.init.normal_(generator["output.weight"])
    files.llamagen_generator_file(tmp_path / "c2i_B_256.pt", generator, grid, 64)
    networks = {
        "tokenizer": vq,
        "discriminator": files.reference_state("discriminator"),
        "generator": generator,
        "projector": build_projector(64, 8, 4).state_dict(),
    }
    files.gear_joint_file(tmp_path / "0400000.pt", networks=networks)
    (tmp_path / "photos").symlink_to(sample_tree)
    return tmp_path


def test_every_documented_command_runs(workplace, capsys):
    listed = documented_commands("public-checkpoints.md", "Public checkpoints")
    assert len(listed) == 12
    for command in listed:
        words = small(command)
        if command.startswith("import vq_ds16_c2i.pt c2i"):
            # The reference tokenizer halves the image twice, not four times: 64 px are 16 x 16.
            words = [word.replace("256", "64") if "=" in word else word for word in words]
        if words[0] == "train":
            found = gear_dist(*words)
            assert found.returncode == 0, (command, found.stderr)
            assert "done: 2 steps; run folder runs/" in found.stdout
        else:
            assert main(words) == 0, (command, capsys.readouterr().err)
    indices = np.load("photos-indices/indices.npy")
    names = json.loads(Path("photos-indices/files.json").read_text())
    assert indices.shape == (len(names), 64)
    assert indices.dtype == np.int32
    assert all((Path("photos") / name).is_file() for name in names)
    check_what_training_did()
    assert Path("gear-stage1/projectors.safetensors").is_file()
    assert torch.load("mine-public/tokenizer.pt", weights_only=True).keys() >= {"model", "vq_ema"}
    for name in ("mine-model/README.md", "llamagen-b/samples.png", "vq-16/reconstruction.png"):
        assert Path(name).is_file()


def check_what_training_did() -> None:
    """The joint stage starts from the import and moves it; stage 2 leaves it as it is."""
    imported = load_file("vq-16/tokenizer.safetensors")
    joint = load_file("runs/mine/weights/tokenizer.safetensors")
    frozen = load_file("runs/stage2/weights/tokenizer.safetensors")
    assert all(torch.equal(imported[key], frozen[key]) for key in imported)
    moved = max((joint[key] - imported[key]).abs().max().item() for key in imported)
    assert 0 < moved < 0.01
    records = RunFolder("runs/mine").read_metrics()
    assert [record["stage"] for record in records] == ["joint", "joint"]


def test_tokenize_writes_what_the_tokenizer_encodes(tmp_path, sample_tree: Path):
    """Rows in the order of the names, whatever the batch (but for rounding at a tie)."""
    for family in ("vq", "lfq", "ibq"):
        path = tmp_path / f"{family}.pt"
        torch.save(files.reference_state(f"tokenizer_{family}"), path)
        model = tmp_path / family
        import_checkpoints([str(path)], model, overrides=["data.image_size=16"])
        rows = []
        for batch in ("1", "7"):
            out = tmp_path / f"{family}-{batch}"
            command = ["tokenize", str(model), "--images", str(sample_tree / "val")]
            assert main([*command, "--out", str(out), "--batch", batch]) == 0
            rows.append(np.load(out / "indices.npy"))
        assert np.mean(rows[0] == rows[1]) > 0.99


def test_a_stage_starts_from_another_run(
    tmp_path, monkeypatch, sample_shards: SampleShards, capsys
):
    """Stage 1 on a stage-0 run: the same architecture without naming it, the same weights."""
    monkeypatch.chdir(tmp_path)
    tiny, lfq, recipe = (
        str(ROOT / "configs" / f"{name}.yaml") for name in ("tiny", "tiny/lfq", "stage/joint")
    )
    data = [f"data.train={sample_shards.file}/train", "alignment.soft_weight=0"]
    data += ["alignment.hard_weight=0", "log.every_steps=1"]
    one_stage = ["stages.joint.steps=0", "stages.generator.steps=0", "stages.tokenizer.steps=2"]
    assert gear_dist("train", tiny, lfq, *data, *one_stage, "run.name=zero").returncode == 0
    words = [*SMALL_RUN, *data, "stages.joint.steps=1", "stages.init_from=runs/zero"]
    words += ["optimizer.tokenizer_lr=0", "run.name=one"]
    assert main(["train", recipe, *words, "--dry-run"]) == 0
    assert "starts from runs/zero: tokenizer, discriminator" in capsys.readouterr().out
    assert gear_dist("train", recipe, *words).returncode == 0
    paths = (f"runs/{name}/weights/tokenizer.safetensors" for name in ("zero", "one"))
    before, after = map(load_file, paths)
    assert all(torch.equal(before[key], after[key]) for key in before)
    wrong = [*words, "tokenizer.code_width=7", "tokenizer.codebook_size=128", "run.name=two"]
    assert main(["train", recipe, *wrong, "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert "tokenizer.code_width=7 (6 there)" in error
    assert len(error.strip().splitlines()) == 1
