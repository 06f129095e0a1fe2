"""What the images install, a wheel, has every file that the code reads beside itself."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("gear_dist", "kernels/gear_kernels", "cluster/gear_cluster", "data_prep/gear_data_prep")
SUFFIXES = {".py", ".html", ".css", ".c"}


def test_a_wheel_lacks_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    leave_out = shutil.ignore_patterns("__pycache__", "*.so")
    for part in PARTS:
        shutil.copytree(ROOT / part, source / part, ignore=leave_out)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", *build, str(source)], check=True, timeout=300)
    [wheel] = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        path.relative_to((ROOT / part).parent).as_posix()
        for part in PARTS
        for path in (ROOT / part).rglob("*")
        if path.suffix in SUFFIXES
    }
    assert wanted - packed == set()
    compiled = {name.split("/")[-1].split(".")[0] for name in packed if name.endswith(".so")}
    assert compiled == {f"_{path.stem}" for part in PARTS for path in (ROOT / part).rglob("*.c")}
