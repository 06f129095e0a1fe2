"""The command line: what it lists, how it fails."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gear_dist.cli import main as cli
from gear_dist.cli.examples import EXAMPLES
from gear_dist.config.loading import load_config
from gear_dist.errors import DataError

ROOT = Path(__file__).parents[3]
COMMANDS = (
    "quickstart train sample reconstruct evaluate report teacher shard sample-corpus store doctor"
)


def run_cli(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    try:
        code = cli.main(words)
    except SystemExit as ended:
        code = int(ended.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_every_command_is_listed_and_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    _, names = cli.build_parser()
    assert set(COMMANDS.split()) <= set(names)
    for name in names:
        code, out, _ = run_cli(capsys, name, "--help")
        assert code == 0
        assert f"gear-dist {name}" in out
        assert "\nexamples:\n  " in out


def test_examples_of_the_help_pages_are_valid_commands() -> None:
    for name, lines in EXAMPLES.items():
        for line in lines:
            words = shlex.split(line.removeprefix('eval "$(').removesuffix(')"'))
            assert words[:2] == ["gear-dist", name]
            args = cli.parse(words[1:])
            assert args.command == name
            for file in getattr(args, "configs", None) or []:
                assert (ROOT / file).is_file()
            load_config(None, getattr(args, "overrides", None) or [])  # refuses unknown settings


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--versoin"], "--version"),
        (["train", "c.yaml", "--dry-rnu"], "--dry-run"),
        (["shard", "a", "b", "--sed=3"], "--seed"),
        (["evaluate", "--hlep"], "--help"),
        (["look", "guidance", "m", "--temprature=1"], "--temperature"),
        (["store", "check", "s3://b", "--jsno"], "--json"),
    ],
)
def test_misspelt_option_suggests(
    words: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run_cli(capsys, *words)
    assert code == 2
    assert words[-1].partition("=")[0] in err
    assert f"did you mean {meant}?" in err


def test_misspelt_command_suggests(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_cli(capsys, "traim", "x.yaml")
    assert (code, err) == (2, "gear-dist: unknown command 'traim'; did you mean train?\n")


def test_unlike_command_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_cli(capsys, "qqqqq")
    assert code == 2
    assert "use one of" in err


def test_overrides_may_follow_options(tmp_path: Path) -> None:
    args = cli.parse(["train", "c.yaml", "a.b=1", "--dry-run", "c.d=2", "--verbose", "e.f=3"])
    assert args.overrides == ["a.b=1", "c.d=2", "e.f=3"]
    assert args.configs == ["c.yaml"]
    assert args.dry_run
    assert args.verbose


@pytest.mark.parametrize("command", ["train", "plan"])
def test_several_files_make_up_a_configuration(command: str) -> None:
    args = cli.parse([command, "a.yaml", "b.yaml", "a.b=1", "c.yaml", "c.d=2"])
    assert args.configs == ["a.yaml", "b.yaml", "c.yaml"]
    assert args.overrides == ["a.b=1", "c.d=2"]


def test_settings_without_a_file_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_cli(capsys, "train", "data.train=x")
    assert (code, err) == (2, "gear-dist: name a CONFIG file before data.train=x\n")


@pytest.mark.parametrize(
    "words", [["train", "c.yaml", "--qqqqqqqq"], ["train", "c.yaml", "--dry-run", "word"]]
)
def test_unknown_words_are_refused(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    code, _, err = run_cli(capsys, *words)
    assert code == 2
    assert f"unknown arguments: {words[-1]}" in err


def test_override_of_a_command_that_takes_none(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_cli(capsys, "report", "runs/x", "a=b")
    assert code == 2
    assert "a=b" in err


def test_user_error_is_one_line_with_its_code(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = run_cli(capsys, "train", str(tmp_path / "no.yaml"))
    assert (code, out) == (2, "")
    assert err == f"gear-dist: {tmp_path / 'no.yaml'}: no such configuration file\n"


@pytest.mark.parametrize(("command", "code"), [("train", 75), ("report", 130)])
def test_interrupt(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, code: int
) -> None:
    def interrupted(words: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "parse", interrupted)
    assert run_cli(capsys, command, "x") == (code, "", "gear-dist: interrupted\n")


def test_other_exceptions_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(words: list[str]) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "parse", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["train"])


def test_data_error_has_code_three(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(words: list[str]) -> None:
        raise DataError("shards: gone")

    monkeypatch.setattr(cli, "parse", broken)
    assert run_cli(capsys, "train") == (3, "", "gear-dist: shards: gone\n")


def test_help_needs_no_heavy_import() -> None:
    program = (
        "import sys\n"
        "from gear_dist.cli.main import build_parser\n"
        "build_parser()\n"
        "print(sorted({'torch', 'ray', 'deepspeed', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_runs_from_a_checkout_that_is_not_installed(tmp_path: Path) -> None:
    """As `ray job submit --working-dir .` does it: the root alone is on the path."""
    root = Path(__file__).parents[3]
    program = (
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if '__editable__' not in repr(f)]\n"
        "import gear_dist.cli.main as cli\n"
        "try: cli.main(['--version'])\n"
        "except SystemExit: pass\n"
        "import gear_cluster, gear_kernels, gear_data_prep\n"
        "print(gear_cluster.__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == str(root / "cluster/gear_cluster/__init__.py"), (
        done.stderr
    )


def test_a_reader_that_is_gone_ends_a_command_quietly():
    command = f"{sys.executable} -m gear_dist WORDS | head -n 1; exit ${{PIPESTATUS[0]}}"
    for words in ("--help", "plan configs/tiny.yaml"):
        done = subprocess.run(
            ["bash", "-c", command.replace("WORDS", words)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in (0, 141), done.stderr
        assert "Traceback" not in done.stderr
        assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_is_closed_or_unread_is_no_fault(unbuffered):
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    command = f"{sys.executable} -m gear_dist train --help"
    for shell, codes in ((f"{command} >&-", (0,)), (f"{command} | true", (0, 141))):
        words = ["bash", "-c", f"set -o pipefail; {shell}"]
        done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode in codes, done.stderr
        assert "Traceback" not in done.stderr
