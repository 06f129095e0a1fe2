"""Makes this folder's helper modules importable, and those of the kernels' bench."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "kernels" / "bench"))
