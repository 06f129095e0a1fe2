"""What the fixture `sample_shards` gives."""

from pathlib import Path
from typing import NamedTuple


class SampleShards(NamedTuple):
    """A tiny corpus: 16 classes, 12 training and 2 validation images each, 32 x 32 pixels."""

    tree: Path
    """The ImageFolder tree."""
    file: str
    """file:// address; the corpora are FILE/train (4 shards) and FILE/validation (1)."""
    s3: str
    """s3:// address of the same two."""
