"""Every command of docs/text.md on training, in order: captions to pictures."""

from pathlib import Path

import pytest

from documented_commands import documented_commands, words_of
from gear_dist.cli.main import main
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
