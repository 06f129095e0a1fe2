"""`gear-dist reproduce` from shards to table and curves, in short."""

import json
from pathlib import Path

import pytest

from gear_dist.cli.main import main
from gear_dist.runs.run_folder import RunFolder
from sample_shards import SampleShards

STEPS = ("stages.tokenizer.steps=2", "stages.joint.steps=4", "stages.generator.steps=4")


def test_an_arm_and_a_fresh_generator_on_its_tokenizer(
    tmp_path: Path, sample_shards: SampleShards, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, study = tmp_path / "teacher.safetensors", tmp_path / "study"
    made = ["teacher", f"{sample_shards.file}/train", "--out", str(teacher), "--steps", "2"]
    assert main(made) == 0
    corpora = [f"data.{part}={sample_shards.file}/{part}" for part in ("train", "validation")]
    settings = [*corpora, *STEPS, f"teacher.path={teacher}", "log.every_steps=1"]
    quick = ["--every", "2", "--images-per-class", "1", "--classifier-steps", "5"]
    arms = ["--arms", "gear", "fresh-on-gear", "--seeds", "1"]
    words = ["reproduce", "configs/tiny.yaml", "--out", str(study), *arms, *quick, *settings]
    assert main(words) == 0

    fresh = RunFolder(study / "runs" / "fresh-on-gear-seed1").read_config()
    assert fresh.stages.init_from == str(study / "runs" / "gear-seed1")
    assert (fresh.stages.joint.steps, fresh.stages.generator.steps) == (0, 4)
    points = {
        name: json.loads((study / "points" / f"{name}-seed1.json").read_text())["points"]
        for name in ("gear", "fresh-on-gear")
    }
    for found in points.values():
        assert [point["step"] for point in found] == [2, 4]
        assert found[1]["teraflops"] == 2 * found[0]["teraflops"] > 0
    assert points["gear"][1]["teraflops"] > points["fresh-on-gear"][1]["teraflops"]
    psnr = {point["psnr_db"] for point in points["fresh-on-gear"]}
    assert psnr == {points["gear"][1]["psnr_db"]}, "its tokenizer is gear's last one, and stays"
    table = (study / "convergence.md").read_text()
    assert "| a fresh generator on gear's last tokenizer, frozen | 4 |" in table
    assert (study / "convergence.svg").read_text().startswith("<svg")

    logs = study / "logs" / "gear-seed1.log"
    before = logs.stat().st_mtime_ns
    capsys.readouterr()
    assert main(words) == 0
    assert table in capsys.readouterr().out
    assert logs.stat().st_mtime_ns == before, "what is finished is not trained again"
