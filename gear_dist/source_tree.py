"""Makes a checkout usable without installation, and keeps its packages from mixing with others.

`ray job submit --working-dir .` puts only the checkout's root on the path: gear_dist then comes
from there, and the other top-level packages must too, whatever is installed.
"""

import sys
from pathlib import Path

ROOMS = ("kernels", "cluster", "data_prep")
ROOT = Path(__file__).resolve().parents[1]
"""The checkout, or the folder that gear_dist is installed in."""


def source_folders() -> list[str]:
    """Import folders of the checkout that this file is in; empty where it is installed."""
    folders = [ROOT, *(ROOT / room for room in ROOMS)]
    return [str(folder) for folder in folders] if all(f.is_dir() for f in folders) else []


def use_source_tree() -> None:
    """Put the checkout's import folders in front of the path."""
    folders = source_folders()
    sys.path[:] = folders + [entry for entry in sys.path if entry not in folders]
