"""C code is compiled at install, and at run time neither compiled nor taken from anywhere else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gear_data_prep.images import native


@pytest.mark.parametrize("name", ["jpeg_codes", "resample"])
def test_this_checkout_has_it(name: str) -> None:
    assert native.load_native(name) is not None, "run make setup"


def test_nothing_is_compiled_or_cached_at_run_time(tmp_path: Path) -> None:
    program = (
        "from gear_data_prep.images.native import load_native\n"
        "assert load_native('resample') and load_native('jpeg_codes')\n"
    )
    subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, "PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        check=True,
        timeout=60,
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damaged", [False, True])
def test_without_it_the_slower_code_runs_and_says_so(
    damaged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = Path(shutil.copy(native.__file__, tmp_path))
    if damaged:
        (tmp_path / f"_resample{native.EXTENSION_SUFFIXES[0]}").write_bytes(b"no library")
    monkeypatch.setattr(native, "__file__", str(module))
    with pytest.warns(UserWarning, match="C compiler"):
        assert native.load_native.__wrapped__("resample") is None
