"""The commands that README shows, so that tests run what it says."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]


def readme_commands(section: str) -> list[str]:
    """Lines of the code blocks of a section, without the leading `gear-dist`."""
    readme = (ROOT / "README.md").read_text()
    found = re.search(rf"## {section}\n(.*?)\n## ", readme, re.DOTALL)
    assert found, section
    blocks = re.findall(r"```\n(.*?)```", found[1], re.DOTALL)
    return [line.removeprefix("gear-dist ") for block in blocks for line in block.splitlines()]


def words_of(command: str) -> list[str]:
    """A command's words; configs/ is found from any working folder."""
    words = shlex.split(command)
    return [str(ROOT / word) if word.startswith("configs/") else word for word in words]
