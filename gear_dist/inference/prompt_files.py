"""Files of prompts: one a line. No torch."""

import sys
from pathlib import Path

from gear_dist.errors import DataError


def read_prompt_file(path: Path, *, most: int) -> list[str]:
    """The prompts of a file, without blank lines, whose number is said.

    Args:
        path: the file.
        most: prompts that are allowed.

    Raises:
        DataError: it cannot be read, is no UTF-8, or has no prompt or too many.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"--prompts {path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"--prompts {path}: is no UTF-8 (byte {error.start}): save it as UTF-8"
        ) from None
    prompts = [line.strip() for line in lines if line.strip()]
    if blank := len(lines) - len(prompts):
        print(f"gear-dist: {path}: {blank} blank lines left out", file=sys.stderr)
    if not 0 < len(prompts) <= most:
        raise DataError(
            f"--prompts {path}: has {len(prompts):,} prompts, one a line: use 1 to {most:,}"
        )
    return prompts
