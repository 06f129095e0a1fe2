"""Types of arguments: what they take, what they refuse, and how that is told."""

import argparse
import os
from pathlib import Path

import pytest

from gear_dist.cli import main as cli
from gear_dist.cli.arguments import OneLineParser, number, path_argument, whole
from gear_dist.errors import ConfigError, one_line
from refusals import refused


@pytest.mark.parametrize(("text", "value"), [("1", 1), (" 7 ", 7), ("+3", 3), ("1_000", 1000)])
def test_whole_numbers_within_bounds(text: str, value: int) -> None:
    assert whole(1, 1000)(text) == value


@pytest.mark.parametrize("text", ["", "0", "-1", "1001", "9" * 5000, "1.0", "nan", "x", "1__0"])
def test_other_whole_numbers_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        whole(1, 1000)(text)


def test_numbers_are_finite_and_within_bounds() -> None:
    assert number(0, 1)("1e-1") == 0.1
    assert number()("0") == 0
    for text in ("nan", "inf", "1e400", "-1", "2", "", "x"):
        with pytest.raises(argparse.ArgumentTypeError):
            number(0, 1)(text)
    with pytest.raises(argparse.ArgumentTypeError):
        number(above=True)("0")


def test_paths_that_no_system_has_are_refused(tmp_path: Path) -> None:
    there = str(tmp_path / "not" / "there")
    assert path_argument(there) == Path(there)
    assert path_argument("bytes\udcff") == Path("bytes\udcff")
    for text in ("", "a\0b", "x" * 300, "y/" * 3000, "\ud83d"):
        with pytest.raises(argparse.ArgumentTypeError):
            path_argument(text)


def test_a_wrong_argument_is_one_line_that_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["preview", "x", "--out", "y.png", "--count", "0"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--count" in err
    assert "gear-dist preview --help" in err


def test_subcommands_of_a_parser_raise_as_well() -> None:
    parser = OneLineParser(prog="p")
    child = parser.add_subparsers(required=True).add_parser("child")
    child.add_argument("--n", type=whole(1))
    with refused(ConfigError, "--n x", "p child --help"):
        parser.parse_args(["child", "--n", "x"])


def test_messages_are_one_line_without_control_characters() -> None:
    assert one_line("a\nb\x1b[31m\udcff") == "a\\nb\\x1b[31m\\udcff"
    assert one_line(ValueError("ünï 圖")) == "ünï 圖"
    assert len(one_line("x" * 10_000)) < 400


def test_a_name_that_is_no_text_can_be_printed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "parse", lambda words: argparse.Namespace(run=_print_odd))
    assert cli.main([]) == 0
    assert "\\udcff" in capfd.readouterr().out


def _print_odd(args: argparse.Namespace) -> int:
    print("\udcff")
    return 0


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "model", "--out"],
        ["reconstruct", "model", "--out"],
        ["preview", "corpus", "--out"],
        ["stats", "corpus", "--html"],
        ["teacher", "corpus", "--out"],
    ],
)
def test_where_to_write_is_looked_at_first(words, tmp_path, monkeypatch, capsys):
    """Before the model is even opened, which there is none of here."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("folder.png", "pipe.png"):
        assert cli.main([*words, name]) == 2
        assert "name a file" in capsys.readouterr().err
    if words[0] in ("sample", "reconstruct", "preview"):
        assert cli.main([*words, "picture.jpg"]) == 2
        assert "must end with .png" in capsys.readouterr().err


def test_a_file_is_no_folder_to_write_to(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert cli.main(["tokenize", "model", "--images", ".", "--out", "file"]) == 2
    assert "name a folder" in capsys.readouterr().err
