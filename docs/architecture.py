"""Renders docs/ARCHITECTURE.md: a line for each source file, from what the file says of itself.

`make docs` writes it, and docs/configuration.md. Needs nothing but Python.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (
    "gear_dist",
    "kernels/gear_kernels",
    "cluster/gear_cluster",
    "data_prep/gear_data_prep",
    "configs",
    "docker",
)
_SUFFIXES = {".py", ".c", ".css", ".html", ".js", ".yaml"}
_HEAD = """\
# Architecture

Every source file and what it is for, written by `make docs` from the first sentence of each file.
"""


def _opening(path: Path) -> str:
    """The docstring of a Python file, the first comment of any other (of a template: {# #})."""
    text = path.read_text()
    if path.suffix == ".py":
        return ast.get_docstring(ast.parse(text)) or ""
    if path.suffix == ".html":
        template, page = (re.findall(r"(?s){#(.*?)#}|<!--(.*?)-->", text) or [("", "")])[0]
        return template or page
    if text.startswith("/*"):
        return re.sub(r"\n ?\*? ?", "\n", text[2 : text.index("*/")])
    lines = text.splitlines()
    comments = lines[: next(n for n, line in enumerate([*lines, ""]) if not line.startswith("#"))]
    return "\n".join(line.lstrip("# ") for line in comments)


def purpose(path: Path) -> str:
    """The first sentence of what a file says of itself, without its full stop; may be empty."""
    first = _opening(path).strip().split("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=[\w`)\]])[.:?](?= [A-Z]| *$)", first)[0]


def source_files(folder: str) -> list[Path]:
    """Source files below a folder of the checkout; those of a folder before its folders."""
    found = [
        path
        for path in (ROOT / folder).rglob("*")
        if (path.suffix in _SUFFIXES or path.name.startswith("Dockerfile"))
        and "__pycache__" not in path.parts
    ]
    return sorted(found, key=lambda path: (path.parent.parts, path.name))


def render() -> str:
    """The page."""
    lines = [_HEAD]
    room = None
    for folder in FOLDERS:
        for path in source_files(folder):
            name = path.relative_to(ROOT)
            if name.parent != room:
                room = name.parent
                about = purpose(path) if path.name == "__init__.py" else ""
                lines.append(f"\n## {room.as_posix()}/\n\n" + (f"{about}.\n\n" if about else ""))
            if path.name != "__init__.py":
                about = purpose(path)
                lines.append(f"- `{name.as_posix()}`" + (f": {about}" if about else "") + "\n")
    return "".join(lines)


if __name__ == "__main__":
    print(render(), end="")
