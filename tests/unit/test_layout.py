"""Package layering (who may import whom), what may not be a package, docs/ARCHITECTURE.md."""

import ast
import graphlib
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
ORDER = (
    ("errors", "formatting", "native", "source_tree"),
    ("progress", "redaction"),
    ("storage",),
    ("config",),
    ("distributed",),
    ("runs",),
    ("data",),
    ("checkpoints", "models"),
    ("losses", "inference", "report"),
    ("training",),
    ("evaluation", "interop", "planning", "sheets"),
    ("reproduce",),
    ("api", "serving"),
    ("cli",),
)
"""Rooms and single modules of gear_dist; each imports itself and those before it, none beside."""
LEVELS = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
ABOVE_ALL = {"gear_dist.cli.main", "gear_dist.__main__"}


def find_modules() -> dict[str, Path]:
    """Files of all packages by the name they are imported by."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = [package, *path.relative_to(ROOT / folder).with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = find_modules()
TESTS = {str(path.relative_to(ROOT)): path for path in (ROOT / "tests").rglob("*.py")}


def imported(path: Path) -> set[str]:
    """Modules of ours that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inner if inner <= MODULES.keys() else inner | {node.module}
    return names & MODULES.keys()


IMPORTS = {name: imported(path) - {name} for name, path in MODULES.items()}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_every_import_of_ours_is_there():
    """mypy passes over modules that it cannot find, for those of others."""
    missing = []
    for name, path in {**MODULES, **TESTS}.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found = [node.module]
            elif isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            else:
                continue
            ours = [module for module in found if module.split(".")[0] in PACKAGES]
            missing += [f"{name}: {module}" for module in ours if module not in MODULES]
    assert missing == []


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_one_way(package):
    ours = {n: m for n, m in IMPORTS.items() if n.split(".")[0] == package and n not in ABOVE_ALL}
    assert ours
    for name, modules in ours.items():
        rooms = {module.split(".")[0] for module in modules}
        assert rooms - {package} <= MAY_IMPORT[package], name
        assert "gear_dist.cli.main" not in modules, f"{name}: cli stands above all"


def test_rooms_import_one_way():
    ours = {name for name in MODULES if name.startswith("gear_dist.")} - ABOVE_ALL
    assert {room_of(name) for name in ours} == LEVELS.keys()
    upward = [
        f"{name} -> {other}"
        for name in ours
        for other in IMPORTS[name] & ours
        if room_of(name) != room_of(other) and LEVELS[room_of(name)] <= LEVELS[room_of(other)]
    ]
    assert not upward


def test_no_modules_import_one_another():
    """graphlib names a circle's modules in its error."""
    list(graphlib.TopologicalSorter(IMPORTS).static_order())


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


def members() -> dict[str, set[str]]:
    """Names inside each class of ours, by its name; of classes called the same, all."""
    found: dict[str, set[str]] = {}
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef):
                continue
            inside = found.setdefault(node.name, set())
            for part in ast.walk(node):
                if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
                    inside.add(part.name)
                elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                    inside.add(part.target.id)
                elif isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
                    inside.add(part.attr)
    return found


def test_methods_that_docstrings_name_are_there():
    inside, missing, named = members(), [], 0
    for name, path in MODULES.items():
        for owner, member in re.findall(r"`([A-Z]\w+)\.(\w+)(?:\(\))?`", path.read_text()):
            if owner in inside:
                named += 1
                missing += [f"{name}: `{owner}.{member}`"] * (member not in inside[owner])
    assert named > 10
    assert missing == []


def test_files_that_the_kernels_page_lists_are_those_there_are():
    text = (ROOT / "kernels/README.md").read_text()
    listed = set(re.findall(r"(?<![\w/])(\w+\.py)", text.split("```")[1]))
    modules = {path.name for path in (ROOT / "kernels/gear_kernels").glob("*.py")}
    assert listed == modules - {"__init__.py"}
