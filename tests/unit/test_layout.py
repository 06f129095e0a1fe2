"""The rooms: who may import whom, what may not be a package, and the page that lists every file."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "gear_dist": "gear_dist",
    "gear_kernels": "kernels/gear_kernels",
    "gear_cluster": "cluster/gear_cluster",
    "gear_data_prep": "data_prep/gear_data_prep",
}
MAY_IMPORT = {
    "gear_kernels": set(),
    "gear_dist": {"gear_kernels"},
    "gear_data_prep": {"gear_dist"},
    "gear_cluster": {"gear_dist", "gear_kernels", "gear_data_prep"},
}
ABOVE_ALL = {"gear_dist/cli/main.py", "gear_dist/__main__.py"}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package):
    for path in (ROOT / PACKAGES[package]).rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        if name in ABOVE_ALL:
            continue
        modules = imported(path)
        rooms = {module.split(".")[0] for module in modules} & set(PACKAGES)
        assert rooms - {package} <= MAY_IMPORT[package], name
        assert "gear_dist.cli.main" not in modules, f"{name}: cli stands above all"


def test_rooms_that_hold_a_package_are_none_themselves():
    """A top-level package `kernels` would stand in the way of a library of that name."""
    for room in ("kernels", "cluster", "data_prep", "configs", "docker"):
        assert not (ROOT / room / "__init__.py").exists(), room


def test_the_page_of_files_is_what_the_files_say():
    """A file added, moved, removed or described anew shows here: `make docs` writes the page."""
    page = subprocess.run(
        [sys.executable, ROOT / "docs/architecture.py"], check=True, capture_output=True, text=True
    ).stdout
    assert (ROOT / "docs/ARCHITECTURE.md").read_text() == page
    named = set(re.findall(r"^- `([^`]+)`", page, re.MULTILINE))
    sources = {
        path.relative_to(ROOT).as_posix()
        for folder in PACKAGES.values()
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert sources <= named
    assert all((ROOT / name).is_file() for name in named)


def test_the_readme_is_read_at_a_sitting():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
