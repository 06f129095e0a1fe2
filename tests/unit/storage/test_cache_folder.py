"""What is in the cache folder is believed only where nobody else can write."""

import os
import shutil
from pathlib import Path

import pytest

from gear_dist.storage.cache_folder import cache_folder, find_intruder, make_cache_folder

ANOTHER = 54321
"""A user's number that is neither this process's nor root's."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def kept() -> Path:
    """A file of this user in the cache folder."""
    folder = cache_folder() / "tar-index"
    assert make_cache_folder(folder) == ""
    path = folder / "kept"
    path.write_bytes(b"index")
    assert find_intruder(path) == ""
    return path


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a file another user's: really as root, else as it looks from another user."""
    if os.geteuid() == 0:
        os.chown(path, ANOTHER, ANOTHER)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: ANOTHER)


def test_a_file_of_another_user(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_away(kept, monkeypatch)
    assert "belongs to another user" in find_intruder(kept)


def test_a_file_that_others_may_write(kept: Path) -> None:
    kept.chmod(0o664)
    assert "chmod go-w" in find_intruder(kept)


def test_a_link_to_what_is_another_users(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = tmp_path / "planted"
    shutil.move(kept, planted)
    kept.symlink_to(planted)
    give_away(planted, monkeypatch)
    assert "belongs to another user" in find_intruder(kept)


@pytest.mark.parametrize("depth", [0, 1])
def test_folders_of_others(kept: Path, depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    give_away(kept.parents[depth], monkeypatch)
    assert "belongs to another user" in find_intruder(kept)


def test_a_parent_that_others_may_write_is_as_bad(kept: Path) -> None:
    kept.parents[1].chmod(0o777)
    assert "chmod go-w" in find_intruder(kept)


def test_a_generous_umask_at_an_earlier_start_is_mended() -> None:
    folder = cache_folder() / "tar-index"
    folder.mkdir(parents=True)
    for part in (folder, cache_folder()):
        part.chmod(0o777)
    assert make_cache_folder(folder) == ""
    assert {part.stat().st_mode & 0o777 for part in (folder, cache_folder())} == {0o755}


def test_everybodys_temporary_folder_is_no_intruder(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    own = shared / "own"
    own.mkdir()
    assert find_intruder(own) == ""
    shared.chmod(0o777)
    assert str(shared) in find_intruder(own)
