"""Every command of docs/text.md on training, in order: captions to pictures."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

import gear_dist
from documented_commands import documented_commands, words_of
from gear_dist.cli.main import main
from gear_dist.inference.seeds import prompt_seeds
from gear_dist.runs.run_folder import RunFolder


def test_the_documented_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    *before, train, sample = documented_commands("text.md", "Train")
    for command in before:
        assert main(words_of(command)) == 0, command
    width = next(word for word in train.split() if word.startswith("generator.text_width="))
    assert width in capsys.readouterr().out, "as `words` prints it"
    assert main([*words_of(train), "--dry-run"]) == 0
    features_are_written_once(train)
    assert main(words_of(train)) == 0
    run = RunFolder(Path("runs/tiny-text"))
    stages = {record["stage"] for record in run.read_metrics()}
    assert stages == {"tokenizer", "joint", "generator"}
    assert main(words_of(sample)) == 0
    assert Path("runs/tiny-text/samples.png").is_file()
    assert main(["report", "runs/tiny-text"]) == 0
    assert main(["evaluate", "runs/tiny-text", "--classifier-steps", "2"]) == 0
    said = capsys.readouterr().out
    assert "captions are scored instead" in said
    assert "no generator" not in said
    many_samples_are_those_of_python()


def features_are_written_once(train: str) -> None:
    """The documented size, then the cache, which a run takes; and filters that leave nothing."""
    [size] = documented_commands("text.md", "Features of a small corpus, written once")
    words = words_of(size)
    assert main(words) == 0
    assert not Path("features").exists()
    assert main([word for word in words if word != "--dry-run"]) == 0
    cached = [*words_of(train), "data.caption_features=features", "--dry-run"]
    assert main(cached) == 0
    assert main([*cached, "data.captions=first"]) == 2, "other captions than were written"
    assert main([*words_of(train), "data.min_side=33", "--dry-run"]) == 3


def many_samples_are_those_of_python() -> None:
    """`sample --prompts --num`: prompts take turns, and each sample is the one of its seed."""
    prompts = ["a red circle", "a blue square", "a red circle"]
    Path("prompts.txt").write_text("\n".join(prompts))
    words = ["sample", "runs/tiny-text", "--prompts", "prompts.txt", "--num", "7", "--out", "many"]
    assert main([*words, "--samples-per-tar", "4", "--seed", "3"]) == 0
    tars = [f"many/samples/{i:06d}.tar" for i in range(2)]
    found = list(webdataset.WebDataset(tars, shardshuffle=False))
    turns = [prompts[i % 3] for i in range(7)]
    assert [sample["txt"].decode() for sample in found] == turns
    seeds = [json.loads(sample["json"])["seed"] for sample in found]
    # Each asks for its sample alone, in Python and on the command line.
    own = prompt_seeds(3, turns)
    assert [prompt_seeds(seed, [turn])[0] for seed, turn in zip(seeds, turns, strict=True)] == own
    assert seeds[0] == 3
    pair = gear_dist.load("runs/tiny-text", device="cpu")
    wanted = pair.generate(prompts=turns, seeds=seeds).tensor
    for sample, image in zip(found, wanted, strict=True):
        picture = np.asarray(Image.open(io.BytesIO(sample["png"])))
        assert np.array_equal(picture, image.permute(1, 2, 0).numpy())
    npz = np.load("many/samples.npz")
    assert npz.files == ["arr_0"]
    assert npz["arr_0"].shape == (7, *wanted.shape[2:], 3)
    assert main([*words[:4], "--per-class", "5", "--out", "other"]) == 2
