"""The commands that the documentation shows, so that tests run what it says."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]


def section(page: str, title: str) -> str:
    """Text below the heading `title` of a page of docs/, up to the next heading of its level."""
    text = (ROOT / "docs" / page).read_text()
    found = re.search(rf"^(#+) {title}\n(.*?)(?=^\1 |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, f"{page}: no {title}"
    return found[2]


def documented_commands(page: str, title: str) -> list[str]:
    """Lines of the code blocks of a section, without the leading `gear-dist`."""
    blocks = re.findall(r"```\n(.*?)```", section(page, title), re.DOTALL)
    return [line.removeprefix("gear-dist ") for block in blocks for line in block.splitlines()]


def words_of(command: str) -> list[str]:
    """A command's words; configs/ is found from any working folder."""
    words = shlex.split(command)
    return [str(ROOT / word) if word.startswith("configs/") else word for word in words]
