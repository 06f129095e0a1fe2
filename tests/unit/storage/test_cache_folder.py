"""Libraries and indexes are taken from the cache folder only where nobody else can write."""

import os
import shutil
import warnings
from pathlib import Path

import pytest

from gear_data_prep.images import native
from gear_dist.storage.cache_folder import cache_folder, find_intruder, make_cache_folder

ANOTHER = 54321
"""A user's number that is neither this process's nor root's."""
load = native.load_native.__wrapped__  # not what this process has loaded already


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a file another user's: really as root, else as it looks from another user."""
    if os.geteuid() == 0:
        os.chown(path, ANOTHER, ANOTHER)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: ANOTHER)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library in the cache folder; loading it is watched."""
    if load("resample") is None:
        pytest.skip("no C compiler")
    (path,) = cache_folder().glob("resample-*.so")
    plain = native._open

    def watched(library: Path):
        assert library != path, "loaded from the cache folder"
        return plain(library)

    monkeypatch.setattr(native, "_open", watched)
    return path


def refuse(match: str) -> None:
    with pytest.warns(UserWarning, match=match):
        assert load("resample") is not None, "compiled for this process"


def test_what_is_this_users_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    if load("resample") is None:
        pytest.skip("no C compiler")
    monkeypatch.setattr(native, "_compile", lambda *_: pytest.fail("compiled twice"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load("resample") is not None


def test_a_library_of_another_user_is_not_loaded(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_away(kept, monkeypatch)
    refuse("belongs to another user")


def test_a_library_that_others_may_write_is_not_loaded(kept: Path) -> None:
    kept.chmod(0o775)
    refuse("chmod go-w")


def test_a_link_to_what_is_another_users_is_not_followed(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = tmp_path / "planted.so"
    shutil.move(kept, planted)
    kept.symlink_to(planted)
    give_away(planted, monkeypatch)
    refuse("belongs to another user")


@pytest.mark.parametrize("depth", [0, 1])
def test_folders_of_others_hold_nothing_of_ours(
    kept: Path, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = kept.parents[depth]
    give_away(folder, monkeypatch)
    refuse("belongs to another user")


def test_a_parent_that_others_may_write_is_as_bad(kept: Path) -> None:
    kept.parents[1].chmod(0o777)
    refuse("chmod go-w")


def test_a_generous_umask_at_an_earlier_start_is_mended(tmp_path: Path) -> None:
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


def test_without_a_compiler_the_slower_code_runs(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.chmod(0o777)
    monkeypatch.setattr(native, "_compile", lambda *_: None)
    with pytest.warns(UserWarning, match="slower"):
        assert load("resample") is None
